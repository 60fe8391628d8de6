"""Grouping a folder's files into cases: exactly those that were written, or an error that names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.cases import find_cases
from nnunet_kd_runtime.errors import DataError
from tests.inference.test_cases import FILES, LEFT_BEHIND, folder, write
from tests.runtime.models import dataset, model, plans

__all__ = ["folder"]


@settings(max_examples=40, deadline=None)
@given(FILES, st.integers(1, 3), st.sets(st.sampled_from(LEFT_BEHIND)))
def test_cases(folder: Path, files: dict[str, set[int]], channels: int, left_behind: set[str]) -> None:
    made = write(files, folder, ".nii.gz", left_behind)
    wrong = [name for name, found in files.items() if found != {*range(channels)}]
    plan, name = plans(channels)
    try:
        cases = find_cases([folder], folder / "out", model(plan, name, dataset(channels)))
    except DataError as error:
        assert any(f"case {case} " in str(error) for case in wrong)  # noqa: PT017
        return
    assert not wrong
    assert {case.name: list(case.images) for case in cases} == made
