"""Names with bytes that are no text: told before a library ends the process."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_kd.datasets.checks import _read_whole, _Unreadable
from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.labels import LabelSet
from nnunet_kd.evaluation.pairs import CasePair, check_pair
from nnunet_kd.inference.cases import InputCase, check_headers
from nnunet_kd.system.names import check_name, name_problem
from nnunet_kd.volumes.wholeness import check_whole

TOLD = r"caf\\xe9_0000\.nii\.gz has a name that is not utf-8.*Rename"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9_0000.nii.gz"))
    try:
        path.write_bytes(b"never read")
    except OSError:  # macOS and Windows have no such names
        pytest.skip("this file system has text names only")
    return path


def test_text_is_fine() -> None:
    assert name_problem("/data/Größe 1/café.nii.gz") is None


def test_the_name_is_told_and_not_the_content(named: Path) -> None:
    with pytest.raises(DataError, match=TOLD):
        check_name(named)
    with pytest.raises(DataError, match=TOLD):
        check_headers(InputCase("case", (named,), named), ["T1"], SimpleITKIO())
    with pytest.raises(DataError, match=TOLD):
        check_whole(named)
    with pytest.raises(_Unreadable, match=TOLD):
        _read_whole(named)
    labels = LabelSet({"one": 1}, frozenset((0, 1)), None, ".nii.gz")
    (problem,) = check_pair(CasePair("case", named, named), labels, SimpleITKIO()).problems
    assert re.search(TOLD, problem)
