"""Grouping a folder's files into cases: exactly those that were written, or an error that names what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnunet_kd.errors import DataError, NnunetKdError
from nnunet_kd.inference.cases import InputCase, check_headers, find_cases
from nnunet_kd.inference.image_folders import find_images
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


# what headers tell -------------------------------------------------------------------------------------------------------


def image_of(folder: Path, shape: tuple[int, ...], name: str = "case.nii.gz") -> InputCase:
    path = folder / name
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), path)
    return InputCase("case", (path,), path)


@pytest.mark.parametrize(
    ("reader", "why"), [("SimpleITKIO", "writes no segmentation of such an image"), ("NibabelIO", "reads three")]
)
def test_four_dimensions_are_refused_with_the_way_to_split_them(reader: str, why: str, tmp_path: Path) -> None:
    case = image_of(tmp_path, (4, 5, 6, 2))
    told = (
        rf"case\.nii\.gz has 4 dimensions\. nnU-Net's {reader} {why}\. Split .*: case_0000 \(T1\), case_0001 \(T2\)\."
    )
    with pytest.raises(DataError, match=told):
        check_headers(case, ["T1", "T2"], reader_named(reader))


def test_four_dimensions_are_read_where_no_segmentation_is_written(tmp_path: Path) -> None:
    case, reader = image_of(tmp_path, (4, 5, 6, 2)), reader_named("SimpleITKIO")
    check_headers(case, ["T1", "T2"], reader, segmented=False)
    assert reader.read_images([str(case.images[0])])[0].shape == (2, 6, 5, 4)


def test_a_fourth_dimension_of_one_entry(tmp_path: Path) -> None:
    """ITK leaves it out, nibabel does not."""
    case = image_of(tmp_path, (4, 5, 6, 1))
    check_headers(case, ["T1"], reader_named("SimpleITKIO"))
    with pytest.raises(DataError, match="has 4 dimensions"):
        check_headers(case, ["T1"], reader_named("NibabelIO"))


def test_two_dimensions_and_colours(tmp_path: Path) -> None:
    flat = image_of(tmp_path, (4, 5))
    check_headers(flat, ["T1"], reader_named("SimpleITKIO"))
    with pytest.raises(DataError, match="has 2 dimensions; nnU-Net's NibabelIO reads three"):
        check_headers(flat, ["T1"], reader_named("NibabelIO"))
    coloured = tmp_path / "rgb.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 5, 4, 3), np.float32), isVector=True), str(coloured))
    with pytest.raises(DataError, match=r"rgb\.mha holds 3 numbers a voxel"):
        check_headers(InputCase("rgb", (coloured,), coloured), ["T1"], reader_named("SimpleITKIO"))


# cases numbered with four digits -----------------------------------------------------------------------------------------


def test_numbers_of_cases_are_taken_for_channels(tmp_path: Path) -> None:
    """The advice helps: names with the channel's number behind them are cases of their own."""
    described = {"file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    names = [f"patient_{number:04d}" for number in range(3)]
    for name in names:
        (tmp_path / f"{name}.nii.gz").touch()
    advice = r"every name: patient_0002_0000\.nii\.gz in the place of patient_0002\.nii\.gz\.$"
    with pytest.raises(DataError, match=advice):
        find_cases([tmp_path], tmp_path / "out", described)
    with pytest.raises(DataError, match=advice):
        find_cases([tmp_path / "patient_0002.nii.gz"], tmp_path / "out", described)
    with pytest.raises(DataError, match=advice):
        find_images(tmp_path, described, reader_named("SimpleITKIO"))
    with pytest.raises(DataError) as several:
        find_cases([tmp_path], tmp_path / "out", {**described, "channel_names": {"0": "T1", "1": "T2"}})
    assert "different cases" not in str(several.value)
    for name in names:
        (tmp_path / f"{name}.nii.gz").rename(tmp_path / f"{name}_0000.nii.gz")
    assert [case.name for case in find_cases([tmp_path], tmp_path / "out", described)] == names
    assert [case.name for case in find_images(tmp_path, described, reader_named("SimpleITKIO"))] == names
