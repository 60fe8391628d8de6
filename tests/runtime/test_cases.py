"""Grouping a folder's files into cases: exactly those that were written, or an error that names what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.cases import find_cases
from nnunet_kd_runtime.errors import DataError, MissingRequirement
from tests.inference.test_cases import FILES, LEFT_BEHIND, folder, write
from tests.runtime.models import dataset, model, plans

__all__ = ["folder"]


def test_two_files_for_one_channel_are_refused(tmp_path: Path) -> None:
    plan, name = plans(1)
    both = [tmp_path / "a.nii.gz", tmp_path / "a_0000.nii.gz"]
    for path in both:
        path.touch()
    for given_files in (both, both[::-1]):
        with pytest.raises(DataError, match=r"a.* and a.* would both be channel 0000 of case a\. Give one of them"):
            find_cases(given_files, tmp_path / "out", model(plan, name, dataset(1)))
    (case,) = find_cases([both[0], both[0]], tmp_path / "out", model(plan, name, dataset(1)))
    assert case.images == (both[0],)


def test_numbers_of_cases_are_taken_for_channels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"patient_{number:04d}.nii.gz").touch()
    plan, name = plans(1)
    for inputs in (tmp_path / "in", tmp_path / "in" / "patient_0002.nii.gz"):
        with pytest.raises(
            DataError, match=r"every name: patient_0002_0000\.nii\.gz in the place of patient_0002\.nii"
        ):
            find_cases([inputs], tmp_path / "out", model(plan, name, dataset(1)))
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    found = find_cases([tmp_path / "in"], tmp_path / "out", model(plan, name, dataset(1)))
    assert [case.name for case in found] == ["patient_0000", "patient_0001", "patient_0002"]


def test_pictures_in_colours_are_a_case_each(tmp_path: Path) -> None:
    import imageio.v3 as imageio

    plan, name = plans(3, 2, image_reader_writer="NaturalImage2DIO")
    described = model(plan, name, dataset(3, file_ending=".png"))
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for shape, expected in (((9, 8, 3), [1, 1, 1]), ((9, 8), [3])):
        for path in paths:
            imageio.imwrite(path, np.zeros(shape, np.uint8))
        assert [len(case.images) for case in find_cases(paths, tmp_path / "out", described)] == expected


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "out").mkdir()
    plan, name = plans(1)
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # as root, nothing is closed
    with pytest.raises(MissingRequirement, match=r"-o .*out is no folder that can be written to"):
        find_cases([tmp_path / "a.nii.gz"], tmp_path / "out", model(plan, name, dataset(1)))


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "file").touch()
    plan, name = plans(1)
    for output in ("file/out", "file/b.nii.gz"):
        with pytest.raises(MissingRequirement, match=r"-o .*: .*file is no folder that can be written to"):
            find_cases([tmp_path / "a.nii.gz"], tmp_path / output, model(plan, name, dataset(1)))


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
