"""BraTS 2024 as it is written for nnU-Net."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.datasets.brats2024 import CHANNELS, convert_brats2024
from nnunet_kd.datasets.case import ConversionOptions
from tests.datasets.generated_downloads import (
    BRATS_AFFINE,
    LAS,
    affine,
    brats_case,
    brats_download,
    edit,
    tree_hash,
    unpack_into_folder,
)

ONE = ConversionOptions(processes=1)


def test_writes_channels_in_order_labels_and_metadata(source: Path, nnunet: Path) -> None:
    folder = brats_download(source)
    before = tree_hash(source)
    summary = convert_brats2024([folder], options=ONE)
    dataset = nnunet / "Dataset501_BraTS2024"
    assert summary.folder == dataset
    assert len(summary.training) == 10
    assert (summary.patients, summary.patients_with_several) == (6, 2)
    name = "BraTS-GLI-00005-101"
    for number, ending in enumerate(("t1n", "t1c", "t2w", "t2f")):
        copied = (dataset / f"imagesTr/{name}_{number:04d}.nii.gz").read_bytes()
        assert copied == (folder / name / f"{name}-{ending}.nii.gz").read_bytes()
    assert (dataset / f"labelsTr/{name}.nii.gz").read_bytes() == (folder / name / f"{name}-seg.nii.gz").read_bytes()
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "T1n", "1": "T1c", "2": "T2w", "3": "T2f"}
    assert content["labels"] == {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
    assert content["numTraining"] == 10
    assert "regions_class_order" not in content
    assert content["name"] == "Dataset501_BraTS2024"
    assert "synapse" in content["licence"]
    assert "2405.18368" in content["reference"]
    assert not list(dataset.glob(".*"))
    assert tree_hash(source) == before


def test_regions_rebuild_the_labels_in_nnunet(source: Path, nnunet: Path) -> None:
    convert_brats2024([brats_download(source)], regions=True, options=ONE)
    content = json.loads((nnunet / "Dataset501_BraTS2024/dataset.json").read_text())
    regions = {name: value for name, value in content["labels"].items() if name != "background"}
    assert regions == {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4]}
    manager = LabelManager(content["labels"], content["regions_class_order"])
    truth = np.random.default_rng(0).integers(0, 5, (6, 7, 8))
    inside = np.stack([np.isin(truth, values) for values in regions.values()]).astype(np.float32)
    assert np.array_equal(np.asarray(manager.convert_probabilities_to_segmentation(inside)), truth)
    assert manager.all_labels == [0, 1, 2, 3, 4]


def test_several_sources_and_validation_folder(source: Path, nnunet: Path) -> None:
    first = brats_download(source)
    second = source / "training_data_additional"
    brats_case(second, "BraTS-GLI-00005-104")
    brats_case(second, "BraTS-GLI-02000-100")
    validation = source / "validation_data"
    brats_case(validation, "BraTS-GLI-03000-100", seg=False)
    summary = convert_brats2024([first, second, validation], options=ONE)
    assert len(summary.training) == 12
    assert summary.test == ["BraTS-GLI-03000-100"]
    dataset = nnunet / "Dataset501_BraTS2024"
    assert sorted(path.name for path in (dataset / "imagesTs").iterdir()) == [
        f"BraTS-GLI-03000-100_{number:04d}.nii.gz" for number in range(4)
    ]
    of_patient_5 = {name for name in summary.training if "-00005-" in name}
    assert len(of_patient_5) == 4  # from both sources
    for fold in summary.splits:
        assert len(of_patient_5 & set(fold["val"])) in (0, 4)


def test_the_parent_of_all_folders_is_a_source_too(source: Path) -> None:
    brats_download(source)
    brats_case(source / "validation_data", "BraTS-GLI-03000-100", seg=False)
    summary = convert_brats2024([source], options=ONE)
    assert (len(summary.training), len(summary.test)) == (10, 1)


def test_image_unpacked_into_a_folder_of_its_name(source: Path, nnunet: Path) -> None:
    folder = brats_download(source)
    name = "BraTS-GLI-00005-100"
    original = np.asanyarray(nibabel.load(folder / name / f"{name}-t2f.nii.gz").dataobj)
    unpack_into_folder(folder / name / f"{name}-t2f.nii.gz")
    assert len(convert_brats2024([folder], options=ONE).training) == 10
    written = nibabel.load(nnunet / f"Dataset501_BraTS2024/imagesTr/{name}_0003.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), original)


def test_empty_masks_are_a_warning_with_a_count(source: Path) -> None:
    folder = brats_download(source)
    brats_case(folder, "BraTS-GLI-00500-100", labels=(0,))
    brats_case(folder, "BraTS-GLI-00501-100", labels=(0,))
    for _ in range(2):  # the count survives a run that keeps the cases
        summary = convert_brats2024([folder], options=ONE)
        assert len(summary.training) == 12
        assert any("2 cases with an empty segmentation: BraTS-GLI-00500-100" in text for text in summary.warnings)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_data_types_and_endings(source: Path, nnunet: Path, dtype: type, ending: str) -> None:
    for patient in range(5):
        brats_case(
            source,
            f"BraTS-GLI-0000{patient}-100",
            ending=ending,
            dtype=dtype,
            matrix=affine((1, 1, 1), orientation=LAS),
        )
    convert_brats2024([source], options=ONE)
    name = "BraTS-GLI-00003-100"
    for number, channel in enumerate(CHANNELS.values()):
        original = nibabel.load(source / name / f"{name}-{channel}{ending}")
        written = nibabel.load(nnunet / f"Dataset501_BraTS2024/imagesTr/{name}_{number:04d}.nii.gz")
        assert written.get_data_dtype() == original.get_data_dtype() == dtype
        assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(original.dataobj))
        assert np.array_equal(written.affine, original.affine)


def test_full_size(source: Path, nnunet: Path) -> None:
    for patient in range(5):
        brats_case(source, f"BraTS-GLI-0000{patient}-100", shape=(240, 240, 155) if patient == 0 else (24, 24, 16))
    convert_brats2024([source], options=ONE)
    image = nibabel.load(nnunet / "Dataset501_BraTS2024/imagesTr/BraTS-GLI-00000-100_0003.nii.gz")
    assert image.shape == (240, 240, 155)
    assert np.array_equal(image.affine, BRATS_AFFINE)


def test_headers_within_the_tolerance_become_equal(source: Path, nnunet: Path) -> None:
    folder = brats_download(source)
    name = "BraTS-GLI-00005-100"
    edit(folder / name / f"{name}-t2f.nii.gz", shift=(0.004, 0, 0))
    summary = convert_brats2024([folder], options=ONE)
    images = [nibabel.load(nnunet / f"Dataset501_BraTS2024/imagesTr/{name}_{number:04d}.nii.gz") for number in (0, 3)]
    assert np.array_equal(images[0].affine, images[1].affine)
    original = nibabel.load(folder / name / f"{name}-t2f.nii.gz")
    assert np.array_equal(np.asanyarray(images[1].dataobj), np.asanyarray(original.dataobj))
    assert any(text.startswith("1 file with headers") for text in summary.warnings)


def test_patient_on_both_sides_of_training_and_test_is_a_warning(source: Path) -> None:
    folder = brats_download(source)
    brats_case(source / "validation_data", "BraTS-GLI-00005-109", seg=False)
    summary = convert_brats2024([folder, source / "validation_data"], options=ONE)
    assert any("1 patient with training and test cases: 00005" in text for text in summary.warnings)


def test_a_later_run_over_other_cases_knows_the_earlier_one(source: Path, nnunet: Path) -> None:
    folder, validation = brats_download(source), source / "validation_data"
    brats_case(folder, "BraTS-GLI-00777-100")
    (folder / "BraTS-GLI-00777-100" / "BraTS-GLI-00777-100-t1n.nii.gz").unlink()
    brats_case(validation, "BraTS-GLI-00005-109", seg=False)
    skipping = dataclasses.replace(ONE, skip_bad=True)
    made = convert_brats2024([folder], options=skipping).folder
    skipped = (made / "skipped.csv").read_text()
    assert "BraTS-GLI-00777-100" in skipped
    summary = convert_brats2024([validation], options=skipping)
    assert any("1 patient with training and test cases: 00005" in text for text in summary.warnings)
    assert (made / "skipped.csv").read_text() == skipped


def test_cases_without_any_segmentation_become_imagests_of_a_new_or_an_existing_dataset(
    source: Path, nnunet: Path
) -> None:
    train, validation = brats_download(source), source / "validation"
    brats_case(validation, "BraTS-GLI-09005-100", seg=False)
    alone = convert_brats2024([validation], dataset_id=77, options=ONE)
    assert (alone.training, alone.test, alone.splits, alone.splits_files) == ([], ["BraTS-GLI-09005-100"], [], [])
    assert json.loads((alone.folder / "dataset.json").read_text())["numTraining"] == 0
    folder = convert_brats2024([train], options=ONE).folder
    before = {name: (folder / name).read_bytes() for name in ("dataset.json", "splits_final.json")}
    labels = sorted(path.name for path in (folder / "labelsTr").iterdir())
    convert_brats2024([validation], options=ONE)
    assert len(list((folder / "imagesTs").iterdir())) == 4
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == labels
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert convert_brats2024([train], options=ONE).kept > 0  # and the training cases again, beside them
