"""Trained students of every kind give ``nnUNetv2_predict``'s segmentations of real images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK as sitk

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from tests.conftest import REAL_TEACHER
from tests.runtime.real_images import (
    ACDC_RAW,
    HIPPOCAMPUS,
    compare,
    copy_acdc,
    copy_hippocampus,
    hippocampus_cases,
)
from tests.runtime.trained import KINDS, cases_of, sources, train, write_channels

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (REAL_TEACHER.is_dir() and HIPPOCAMPUS.is_dir() and ACDC_RAW.is_dir()),
        reason="needs the real images of docs/results.md, which are not part of the repository",
    ),
]
LEAST, CASES = 0.9999, 3
LEARNED = 0.2
"""Dice from which on a student counts as trained: one that was not finds no structure at all, and the comparison says nothing."""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The student for hippocampi, and a folder for its predictions."""
    folder = tmp_path_factory.mktemp("plain")
    return train("plain", folder, patch), folder / "compared"


def test_forty_validation_cases(plain: tuple[Path, Path], tmp_path: Path) -> None:
    images = copy_hippocampus(tmp_path / "hippocampus", hippocampus_cases("val"))
    found = compare(plain[0], images, plain[1], HIPPOCAMPUS / "labelsTr")
    assert len(found.differing) == 40
    assert found.identical >= 38
    assert found.worst >= LEAST
    assert found.dice > LEARNED
    pytest.importorskip("openvino", reason="needs the extra openvino")
    assert compare(plain[0], images, plain[1], backend="openvino").worst >= LEAST


def test_anisotropic_and_oblique_grids(plain: tuple[Path, Path], tmp_path: Path) -> None:
    images = copy_hippocampus(tmp_path / "turned", hippocampus_cases("val")[:10], turn=True)
    found = compare(plain[0], images, plain[1])
    assert len(found.differing) == 10
    assert found.worst >= LEAST
    assert found.empty <= 2


@pytest.mark.parametrize("name", [name for name in KINDS if name != "plain"])
def test_kinds(name: str, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    model = train(name, tmp_path / "training", patch)
    cases = cases_of(kind, "val")[:CASES]
    images = tmp_path / name
    if kind.acdc:
        copy_acdc(images, cases)
    else:
        images.mkdir()
        for case in cases:
            write_channels(sitk.ReadImage(str(sources(kind, case)[0]), sitk.sitkFloat32), images, case, kind.channels)
    references = sources(kind, cases[0])[1].parent
    found = compare(model, images, tmp_path / "compared", references)
    assert len(found.differing) == CASES
    assert found.worst >= LEAST
    assert found.dice > LEARNED
