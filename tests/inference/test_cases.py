"""Grouping a folder's files into cases: exactly those that were written, or an error that names what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnunet_kd.errors import DataError, NnunetKdError
from nnunet_kd.inference.cases import check_headers, find_cases
from nnunet_kd.nnunet.readers import reader_named
from tests.volumes.formats import written

NAMES = st.sampled_from(["a", "b.c", "a_0000", "0007", "Müller [1]", "x y"])
FILES = st.dictionaries(NAMES, st.sets(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=4)
LEFT_BEHIND = ("._{name}", ".{name}", "{name}.part", "{name}.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def write(files: dict[str, set[int]], folder: Path, ending: str, left_behind: set[str]) -> dict[str, list[Path]]:
    """Empty files, and what programs leave beside them; returns those of every case."""
    shutil.rmtree(folder)
    folder.mkdir()
    made = {name: [folder / f"{name}_{number:04d}{ending}" for number in sorted(files[name])] for name in files}
    for path in (path for group in made.values() for path in group):
        path.touch()
        for pattern in left_behind:
            (folder / pattern.format(name=path.name)).touch()
    for name in ("elsewhere", "elsewhere_1", "elsewhere_00001"):  # without a channel number of four digits
        (folder / f"{name}{ending}").touch()
    return made


@settings(max_examples=80, deadline=None)
@given(
    FILES,
    st.integers(1, 3),
    st.sampled_from([".nii.gz", ".nii", ".mha", ".png"]),
    st.sets(st.sampled_from(LEFT_BEHIND)),
)
@example({"a": {0, 2}}, 2, ".nii.gz", set())
@example({"a": {1, 2}}, 2, ".nii.gz", set())
@example({"a": {1}}, 1, ".nii.gz", set())
@example({"a": {0, 1, 2}, "a_0000": {0, 1}}, 2, ".nii.gz", {"._{name}"})
def test_predict(folder: Path, files: dict[str, set[int]], channels: int, ending: str, left_behind: set[str]) -> None:
    made = write(files, folder, ending, left_behind)
    described = {"file_ending": ending, "channel_names": {str(number): f"T{number}" for number in range(channels)}}
    # one file alone may hold all channels, which only reading it tells
    wrong = [name for name, found in files.items() if found not in ({*range(channels)}, {0})]
    try:
        cases = find_cases([folder], folder / "out", described)
    except DataError as error:
        assert wrong
        assert all(f"case {name}: " in str(error) for name in wrong)  # noqa: PT017
        return
    assert not wrong
    assert {case.name: list(case.images) for case in cases} == made
    assert {case.output for case in cases} == {folder / "out" / f"{name}{ending}" for name in files}


@settings(max_examples=15, deadline=None)
@given(st.sets(st.sampled_from(["a_0000.nii", "a_0001.nii", "b_0000.nii"])))
def test_two_files_of_one_name(folder: Path, beside: set[str]) -> None:
    """``x.nii`` beside ``x.nii.gz``: ITK would read its voxels."""
    shutil.rmtree(folder)
    for case in ("a", "b"):
        for number in (0, 1):
            written("nifti, compressed", folder, f"{case}_{number:04d}")
    for name in beside:
        (folder / name).touch()
    described = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}}
    refused = set()
    for case in find_cases([folder], folder / "out", described):
        try:
            check_headers(case, ["T1", "T2"], reader_named("SimpleITKIO"))
        except NnunetKdError as error:
            assert "lie side by side" in str(error)  # noqa: PT017
            refused.add(case.name)
    assert refused == {name[0] for name in beside}
