from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.checks import BadCasesError
from nnunet_kd.datasets.msd import convert_msd
from nnunet_kd.errors import DataError
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
    assert "is damaged" in why["001"]
    assert "is damaged" in why["002"]  # dataset.json lists it
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
    with pytest.raises(DataError, match="give --dataset-id"):
        convert_msd(task, options=ONE)
    assert convert_msd(task, dataset_id=77, options=ONE).folder.name == "Dataset077_Hippocampus"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": None}, "is not a Decathlon dataset.json"),
        ({"labels": {"0": "background", "2": "x"}}, "nnU-Net needs background as label 0"),
        ({"modality": {"0": "T1", "1": "T1"}}, "must differ"),
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
