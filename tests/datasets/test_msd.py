from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.checks import BadCasesError
from nnunet_kd.datasets.msd import convert_msd
from nnunet_kd.errors import DataError, SettingsError
from tests.datasets.generated_downloads import edit, msd_task, tree_hash, truncate

ONE = ConversionOptions(processes=1)


def test_one_channel(source: Path, nnunet: Path) -> None:
    task = msd_task(source, tests=2)
    before = tree_hash(task)
    summary = convert_msd(task, options=ONE)
    assert summary.folder == nnunet / "Dataset004_Hippocampus"
    assert summary.training == [f"hippocampus_{number:03d}" for number in range(1, 7)]
    assert summary.test == ["hippocampus_901", "hippocampus_902"]
    content = json.loads((summary.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert (content["licence"], content["reference"]) == ("CC-BY-SA 4.0", "Vanderbilt University Medical Center")
    written = (summary.folder / "imagesTr/hippocampus_002_0000.nii.gz").read_bytes()
    assert written == (task / "imagesTr/hippocampus_002.nii.gz").read_bytes()
    assert tree_hash(task) == before


def test_4d_images_become_channels(source: Path) -> None:
    task = msd_task(source, channels=("FLAIR", "T1w", "t1gd", "T2w"), tests=1, folder="Task01_BrainTumour")
    folder = convert_msd(task, options=ONE).folder
    assert folder.name == "Dataset001_BrainTumour"
    original = nibabel.load(task / "imagesTr/hippocampus_003.nii.gz")
    for number in range(4):
        channel = nibabel.load(folder / f"imagesTr/hippocampus_003_{number:04d}.nii.gz")
        assert np.array_equal(np.asanyarray(channel.dataobj), np.asanyarray(original.dataobj)[..., number])
        assert np.allclose(channel.affine, original.affine)
    assert (folder / "imagesTs/hippocampus_901_0003.nii.gz").is_file()


def test_damage(source: Path) -> None:
    task = msd_task(source, cases=12, channels=("T2", "ADC"))
    truncate(task / "imagesTr/hippocampus_001.nii.gz")
    (task / "imagesTr/hippocampus_002.nii.gz").unlink()
    (task / "labelsTr/hippocampus_003.nii.gz").unlink()
    edit(task / "imagesTr/hippocampus_004.nii.gz", lambda a: a[..., 0])
    edit(task / "labelsTr/hippocampus_005.nii.gz", lambda a: a + 1)
    edit(task / "labelsTr/hippocampus_006.nii.gz", shift=(0, 1, 0))
    with pytest.raises(BadCasesError) as caught:
        convert_msd(task, options=ONE)
    why = {case.name[-3:]: "; ".join(case.problems) for case in caught.value.bad}
    assert why.keys() == {"001", "002", "003", "004", "005", "006"}
    assert "is not whole: its gzip data end early" in why["001"]
    assert "cannot be opened: No such file" in why["002"]  # dataset.json lists it
    assert "label: missing in labelsTr" in why["003"]
    assert "ADC: hippocampus_004.nii.gz holds only 1 volumes" in why["004"]
    assert "holds 3; known are 0, 1, 2" in why["005"]
    assert "label: origin" in why["006"]


def test_patients_by_regex(source: Path) -> None:
    task = msd_task(source, cases=10)
    summary = convert_msd(task, group_regex=r"_0(\d)", options=ConversionOptions(processes=1, holdout=0.5))
    assert summary.patients == 2


def test_id_and_name(source: Path) -> None:
    task = msd_task(source, folder="hippo")
    with pytest.raises(SettingsError, match="give --dataset-id"):
        convert_msd(task, options=ONE)
    assert convert_msd(task, dataset_id=77, options=ONE).folder.name == "Dataset077_Hippocampus"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": None}, "is not a Decathlon dataset.json"),
        ({"labels": {"0": "background", "2": "x"}}, "nnU-Net needs the label 0, called background"),
        ({"modality": {}}, "names no channel"),
    ],
)
def test_dataset_json_that_does_not_hold(source: Path, change: dict[str, object], message: str) -> None:
    task = msd_task(source)
    content = json.loads((task / "dataset.json").read_text())
    (task / "dataset.json").write_text(json.dumps(content | change))
    with pytest.raises(DataError, match=message):
        convert_msd(task, options=ONE)


def test_no_dataset_json(source: Path) -> None:
    with pytest.raises(DataError, match="has no dataset"):
        convert_msd(source, options=ONE)


def rewrite(task: Path, **changes: object) -> None:
    path = task / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_label_zero_is_background_in_whatever_letters(source: Path) -> None:
    task = msd_task(source)
    rewrite(task, labels={"0": "Background", "1": "a", "2": "b"})
    folder = convert_msd(task, options=ONE).folder
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "a": 1, "b": 2}


def test_a_byte_order_mark_is_passed_over(source: Path) -> None:
    path = msd_task(source) / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    folder = convert_msd(path.parent, options=ONE).folder
    assert (folder / "dataset.json").read_bytes().startswith(b"{")


def test_two_phases_are_both_called_ct(source: Path) -> None:
    """nnU-Net normalises by the name of a channel, so that two may have the same."""
    task = msd_task(source, channels=("CT", "CT"))
    folder = convert_msd(task, options=ONE).folder
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT", "1": "CT"}
    original = np.asanyarray(nibabel.load(task / "imagesTr/hippocampus_003.nii.gz").dataobj)
    for number in (0, 1):
        written = nibabel.load(folder / f"imagesTr/hippocampus_003_{number:04d}.nii.gz")
        assert np.array_equal(np.asanyarray(written.dataobj), original[..., number])


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr", "imagesTs"])
def test_two_files_of_one_name_are_reported_and_nothing_is_written(source: Path, nnunet: Path, folder: str) -> None:
    task = msd_task(source, tests=1)
    path = next((task / folder).glob("hippocampus_*.nii.gz"))
    nibabel.save(nibabel.load(path), path.with_suffix(""))
    with pytest.raises(BadCasesError, match="there are two") as caught:
        convert_msd(task, options=ONE)
    (bad,) = caught.value.bad
    assert path.name in bad.problems[0]
    assert path.with_suffix("").name in bad.problems[0]
    assert not any(nnunet.iterdir())


def test_plain_nifti_that_is_named_gz_is_converted(source: Path) -> None:
    """Its voxels as they are; compressed in the dataset, so that every reader of nnU-Net opens it."""
    task = msd_task(source)
    path = task / "imagesTr/hippocampus_002.nii.gz"
    expected = np.asanyarray(nibabel.load(path).dataobj).copy()
    path.write_bytes(gzip.decompress(path.read_bytes()))
    for link, number in ((False, 4), (True, 5)):
        folder = convert_msd(task, dataset_id=number, options=ConversionOptions(processes=1, link=link)).folder
        written = nibabel.load(folder / "imagesTr/hippocampus_002_0000.nii.gz")
        assert np.array_equal(np.asanyarray(written.dataobj), expected)


def test_raw_data_of_nnunet_1_is_told_with_its_converter(source: Path) -> None:
    task = msd_task(source, folder="Task538_Old")
    for path in (task / "imagesTr").glob("hippocampus_*"):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    command = r"nnUNetv2_convert_old_nnUNet_dataset \S*Task538_Old Dataset538_Old$"
    with pytest.raises(DataError, match=command):
        convert_msd(task, options=ONE)


def test_patients_need_not_be_found_in_test_names(source: Path) -> None:
    task = msd_task(source, cases=6, tests=1)
    (task / "imagesTs/hippocampus_901.nii.gz").rename(task / "imagesTs/held_out.nii.gz")
    rewrite(task, test=[])
    assert convert_msd(task, group_regex=r"hippocampus_(\d+)", options=ONE).test == ["held_out"]
    with pytest.raises(DataError, match="finds no patient in 6 case names"):
        convert_msd(task, dataset_id=5, group_regex=r"held_(\w+)", options=ONE)


def test_three_cases_are_converted_as_the_message_says(source: Path) -> None:
    task = msd_task(source, cases=3)
    with pytest.raises(DataError, match=r"5 folds cannot be made of 3 patients.*--holdout 0\.34"):
        convert_msd(task, options=ONE)
    summary = convert_msd(task, options=ConversionOptions(processes=1, holdout=0.34))
    assert [len(summary.splits[0][part]) for part in ("train", "val")] in ([1, 2], [2, 1])
