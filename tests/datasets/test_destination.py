"""Where a dataset may not be written, and that this is found before anything is."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_kd.datasets import destination
from nnunet_kd.datasets.brats2024 import convert_brats2024
from nnunet_kd.datasets.case import Volume
from nnunet_kd.datasets.writing import JOURNAL
from nnunet_kd.errors import DataError, MissingRequirement
from tests.datasets.generated_downloads import ONE, brats_case, download, tree_hash


def test_target_inside_a_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    monkeypatch.setenv("nnUNet_raw", str(source / "raw"))
    with pytest.raises(DataError, match="nothing may be written into a source"):
        convert_brats2024([source], options=ONE)
    assert not (source / "raw").exists()


def test_splits_inside_a_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    before = tree_hash(source)
    monkeypatch.setenv("nnUNet_preprocessed", str(source / "preprocessed"))
    with pytest.raises(DataError, match="nothing may be written into a source"):
        convert_brats2024([source], options=ONE)
    assert tree_hash(source) == before


def test_images_folder_that_is_a_link_into_the_source(source: Path, nnunet: Path) -> None:
    download(source)
    folder = nnunet / "Dataset501_BraTS2024"
    folder.mkdir()
    (folder / JOURNAL).touch()
    (folder / "imagesTr").symlink_to(source)
    with pytest.raises(DataError, match="nothing may be written into a source"):
        convert_brats2024([source], options=ONE)


def test_folder_of_somebody_else_is_left_alone(source: Path, nnunet: Path) -> None:
    download(source)
    theirs = nnunet / "Dataset501_BraTS2024/labelsTr/BraTS-GLI-00001-100.nii.gz"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"edited by hand")
    with pytest.raises(DataError, match="was not made by this command"):
        convert_brats2024([source], options=ONE)
    assert theirs.read_bytes() == b"edited by hand"


@pytest.mark.parametrize("place", ["raw", "preprocessed", "results"])
def test_taken_id(source: Path, nnunet: Path, place: str) -> None:
    download(source)
    (nnunet.parent / place / "Dataset501_Other").mkdir()
    with pytest.raises(DataError, match="Dataset id 501 is taken by Dataset501_Other"):
        convert_brats2024([source], options=ONE)
    assert convert_brats2024([source], dataset_id=600, options=ONE).folder.name == "Dataset600_BraTS2024"


def test_cases_of_an_earlier_conversion_are_not_mixed_in(source: Path) -> None:
    first, second = download(source / "a"), source / "b"
    brats_case(second, "BraTS-GLI-00100-100")
    convert_brats2024([first, second], options=ONE)
    with pytest.raises(DataError, match=r"5 files of other cases .*BraTS-GLI-00100-100"):
        convert_brats2024([first], options=ONE)


def test_other_splits_stop_before_anything_is_written(source: Path, nnunet: Path) -> None:
    download(source)
    splits = nnunet.parent / "preprocessed/Dataset501_BraTS2024/splits_final.json"
    splits.parent.mkdir()
    splits.write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    with pytest.raises(DataError, match=r"hold\(s\) other splits.*delete the file\(s\) and run again\.$"):
        convert_brats2024([source], options=ONE)
    assert json.loads(splits.read_text()) == [{"train": ["a"], "val": ["b"]}]
    assert not any(nnunet.iterdir())


def test_full_disk_is_found_before_copying(source: Path, nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(source)
    monkeypatch.setattr(destination, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(MissingRequirement, match="--link"):
        convert_brats2024([source], options=ONE)
    assert not (nnunet / "Dataset501_BraTS2024/imagesTr").exists()


def test_a_file_of_several_channels_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "four.nii.gz"
    with gzip.open(path, "wb") as file:
        file.write(os.urandom(4000))
    case = SimpleNamespace(volumes=lambda: {str(index): Volume(path, index) for index in range(4)})
    for free, fits in ((path.stat().st_size, True), (path.stat().st_size - 1, False)):
        monkeypatch.setattr(destination, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with contextlib.nullcontext() if fits else pytest.raises(MissingRequirement, match="free, but the copies need"):
            destination.require_room(tmp_path, [case])
