"""Labels of the images: which are taken, and what becomes of those that another program stored."""

from __future__ import annotations

from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_kd.errors import DataError
from nnunet_kd.workflows.bench.pair import DATASET_JSON
from nnunet_kd.workflows.shrink import images as images_module
from nnunet_kd.workflows.shrink.dataset import Split, arrays_folder, describe_dataset, preprocess
from nnunet_kd.workflows.shrink.images import look_at
from nnunet_kd.workflows.shrink.model import find_teacher
from nnunet_kd.workflows.shrink.request import Places
from tests.workflows.shrink.tiny_shrink import SIZE, tiny_plans, write_images, write_labels, write_model

SEVEN = {**DATASET_JSON, "labels": {"background": 0, **{f"organ {number}": number for number in range(1, 8)}}}


def nothing(*progress: object) -> None:
    """Nobody watches."""


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_labels_that_are_nearly_whole_numbers_are_trained_on_as_these(reader: str, tmp_path: Path) -> None:
    """Numbers in float64 that nibabel wrote as integers, with a slope: they come back as 0.99998; nnU-Net would make 0 of it."""
    teacher = find_teacher(
        write_model(tmp_path, {**tiny_plans(), "image_reader_writer": reader}, SEVEN), None, 4, False, Places(tmp_path)
    )
    images, labels, places = write_images(tmp_path / "images"), tmp_path / "labels", Places(tmp_path / "out")
    labels.mkdir()
    image = nibabel.load(images / "patient_0.nii.gz")
    drawn = np.random.default_rng(0).integers(0, 8, image.shape)
    own = image.header.copy()
    own.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(drawn.astype(np.float64), image.affine, own), labels / "patient_0.nii.gz")
    stored, _ = teacher.reader.read_seg(str(labels / "patient_0.nii.gz"))
    assert not np.array_equal(stored, np.rint(stored))
    found, split = look_at(images, labels, teacher, nothing), Split(["patient_0"], [])
    describe_dataset(places, teacher, split, found.labels)
    preprocess(found, split, teacher, places, nothing)
    arrays = blosc2.open(str(arrays_folder(places, teacher) / "patient_0_seg.b2nd"))
    assert np.array_equal(np.asarray(arrays[:]), np.rint(stored))


def test_labels_fit_images_that_a_reader_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those whose intensities are not looked at; of them the header alone is read."""
    monkeypatch.setattr(images_module, "LOOKED_AT", 1)
    model = write_model(tmp_path, {**tiny_plans(), "image_reader_writer": "NibabelIOWithReorient"})
    teacher = find_teacher(model, None, 4, False, Places(tmp_path / "out"))
    folders = [tmp_path / "images", tmp_path / "labels"]
    sagittal = np.array([[0, 0, 3, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])
    for folder, kind in zip(folders, (np.float32, np.uint8), strict=True):
        folder.mkdir()
        for number in range(5):
            voxels = np.random.default_rng(number).integers(0, 3, (14, 12, 10)).astype(kind)
            nibabel.save(nibabel.Nifti1Image(voxels, sagittal), folder / f"p{number}.nii.gz")
    found = look_at(*folders, teacher, nothing)
    assert {(image.shape, image.spacing) for image in found.seen.values()} == {((12, 14, 10), (2.0, 1.0, 3.0))}
    assert sum(image.looked_into for image in found.seen.values()) == 1


def test_two_label_files_of_one_case(tmp_path: Path) -> None:
    teacher = find_teacher(write_model(tmp_path), None, 4, False, Places(tmp_path / "out"))
    images, labels = write_images(tmp_path / "images"), write_labels(tmp_path / "labels", ["patient_0", "other"])
    for case in ("patient_0", "other"):  # no image is called other
        sitk.WriteImage(sitk.ReadImage(str(labels / f"{case}.nii.gz")), str(labels / f"{case}.mha"))
    told = r"labels has two files for case patient_0: patient_0\.mha, patient_0\.nii\.gz\. Keep one of them\."
    with pytest.raises(DataError, match=told):
        look_at(images, labels, teacher, nothing)
    (labels / "patient_0.mha").unlink()
    assert list(look_at(images, labels, teacher, nothing).labels) == ["patient_0"]


def test_labels_of_several_volumes(tmp_path: Path) -> None:
    teacher = find_teacher(write_model(tmp_path), None, 4, False, Places(tmp_path / "out"))
    images, labels = write_images(tmp_path / "images"), tmp_path / "labels"
    labels.mkdir()
    both = sitk.GetImageFromArray(np.zeros((2, SIZE, SIZE, SIZE), np.uint8), isVector=False)
    sitk.WriteImage(both, str(labels / "patient_0.nii.gz"))
    with pytest.raises(DataError, match=r"patient_0\.nii\.gz holds 2 volumes instead of one"):
        look_at(images, labels, teacher, nothing)
