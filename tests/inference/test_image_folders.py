"""Which files are a case, however people name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_kd.errors import DataError
from nnunet_kd.inference.image_folders import find_images
from nnunet_kd.nnunet.environment import channel_names

ONE: dict[str, Any] = {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
TWO: dict[str, Any] = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}


def found(folder: Path, names: list[str], dataset: dict[str, Any] = ONE, reader: Any = None) -> dict[str, list[str]]:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    cases = find_images(folder, dataset, reader or SimpleITKIO())
    return {case.name: [path.name for path in case.images] for case in cases}


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (["a_0000.nii.gz", "b_0000.nii.gz"], {"a": ["a_0000.nii.gz"], "b": ["b_0000.nii.gz"]}),
        (["a.nii.gz", "b.mha"], {"a": ["a.nii.gz"], "b": ["b.mha"]}),
        (["a.nii", "b.NII.GZ"], {"a": ["a.nii"], "b": ["b.NII.GZ"]}),
        (
            ["scan_2019.nii.gz", "scan_2020.nii.gz"],
            {"scan_2019": ["scan_2019.nii.gz"], "scan_2020": ["scan_2020.nii.gz"]},
        ),
        (["a.b.nii.gz", "._a.b.nii.gz", "notes.txt"], {"a.b": ["a.b.nii.gz"]}),
        (["a_0000.nii.gz", "b.nii.gz"], {"a_0000": ["a_0000.nii.gz"], "b": ["b.nii.gz"]}),
    ],
)
def test_one_channel(names: list[str], cases: dict[str, list[str]], tmp_path: Path) -> None:
    assert found(tmp_path / "images", names) == cases


def test_two_channels(tmp_path: Path) -> None:
    names = ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert found(tmp_path / "images", names, TWO) == {"a": names}
    assert found(tmp_path / "whole", ["a.nii.gz"], TWO) == {"a": ["a.nii.gz"]}  # which then holds both
    assert found(tmp_path / "first", ["a_0000.nii.gz"], TWO) == {"a": ["a_0000.nii.gz"]}  # likewise


@pytest.mark.parametrize(
    ("names", "dataset", "said"),
    [
        (["a_0001.nii.gz"], TWO, r"a_0000.nii.gz \(T1\) is missing"),
        (["a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"], TWO, "a_0002.nii.gz is one too many"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], ONE, "a_0001.nii.gz is one too many"),
        (["a_0000.nii.gz", "a_0001.nii.gz", "b.nii.gz"], TWO, "others are not, for example b.nii.gz"),
        (["a_0000.nii.gz", "a_0000.mha"], ONE, "are both channel 0 of case a"),
        (["a.nii.gz", "a.nrrd"], ONE, "two files for case a"),
        (["a_seg.nii.gz"], ONE, "names that end in _seg"),
        (["a.txt"], ONE, "holds no image that the model's reader"),
        ([], ONE, "It holds nothing"),
    ],
)
def test_what_is_wrong_is_named(names: list[str], dataset: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        found(tmp_path / "images", names, dataset)


def test_a_reader_that_needs_nnunets_names(tmp_path: Path) -> None:
    pictures = {**ONE, "file_ending": ".tif"}
    with pytest.raises(DataError, match=r"Tiff3DIO, needs nnU-Net's names, CASE_0000.tif. a.tif is not one"):
        found(tmp_path / "images", ["a.tif"], pictures, Tiff3DIO())
    assert found(tmp_path / "named", ["a_0000.tif"], pictures, Tiff3DIO()) == {"a": ["a_0000.tif"]}


def test_channels_by_either_name() -> None:
    assert channel_names({"modality": {"0": "CT"}}) == ["CT"]
    assert channel_names({"channel_names": {"1": "PET", "0": "CT", "10": "T1", "2": "T2"}}) == ["CT", "PET", "T2", "T1"]
    assert channel_names({"modality": {"0": "CT"}, "channel_names": {"0": "a"}}) == ["a"]  # as nnU-Net plans
    assert channel_names({"modality": ["MRI"], "channel_names": {"0": "T1"}}) == ["T1"]
    assert channel_names({"modality": {"0": "CT"}, "channel_names": {}}) == ["CT"]


@pytest.mark.parametrize("dataset", [{}, {"modality": ["MRI"]}, {"channel_names": {}}, {"channel_names": "CT"}])
def test_no_channels_are_told(dataset: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"names no channel.*Add the entry"):
        channel_names(dataset)
