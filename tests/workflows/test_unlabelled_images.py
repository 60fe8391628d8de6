"""Images without labels: which are added, and which are noticed to be others than before."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.soft_labels.student import unlabelled_cases_of
from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.nnunet.datasets import case_names, preprocessed_cases
from nnunet_kd.workflows import soften as soften_module
from nnunet_kd.workflows.bench.pair import DATASET_JSON
from nnunet_kd.workflows.unlabelled_images import add_images
from nnunet_kd.workflows.unlabelled_sources import (
    preprocessing_of,
    read_sources,
    refuse_other_preprocessing,
    sources_path,
)
from tests.workflows.shrink.tiny_shrink import tiny_plans, write_images


class Adding:
    """A trainer as far as :func:`add_images` knows one, and the folder that it adds to."""

    def __init__(self, root: Path) -> None:
        cases = root / "preprocessed" / "nnUNetPlans_3d_fullres"
        cases.mkdir(parents=True)
        (cases / "case.b2nd").touch()
        self.trainer: Any = SimpleNamespace(
            dataset_json=DATASET_JSON,
            is_cascaded=False,
            preprocessed_dataset_folder=str(cases),
            configuration_name="3d_fullres",
        )
        self.folder = cases.parent / "unlabelled" / cases.name
        self.plan()

    def plan(self, reader: str = "SimpleITKIO", spacing: float = 1.0) -> None:
        plans = {**tiny_plans(), "image_reader_writer": reader}
        plans["configurations"]["3d_fullres"]["spacing"] = [spacing] * 3
        self.trainer.plans_manager = PlansManager(plans)

    def add(self, images: Path) -> list[str]:
        return add_images(self.trainer, images, lambda *progress: None)

    def names(self) -> list[str]:
        return case_names(self.folder)

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in sorted(self.folder.iterdir())}


@pytest.fixture
def adding(tmp_path: Path) -> Adding:
    return Adding(tmp_path)


def brighter(images: Path, copy: Path) -> Path:
    """Other images of the same names."""
    copy.mkdir()
    for path in images.iterdir():
        sitk.WriteImage(sitk.ReadImage(str(path)) * 3 + 500, str(copy / path.name))
    return copy


def test_other_images_of_the_same_name_are_refused(adding: Adding, tmp_path: Path) -> None:
    first = write_images(tmp_path / "first", 2)
    assert adding.add(first) == ["patient_0", "patient_1"]
    before = adding.times()
    shutil.copytree(first, tmp_path / "moved")
    assert adding.add(tmp_path / "moved") == ["patient_0", "patient_1"]
    other = brighter(first, tmp_path / "other")
    told = r"other: 2 images of the same name .*: patient_0, patient_1\. Rename .* delete patient_0\.pkl, patient_1\.pkl in"
    with pytest.raises(DataError, match=told):
        adding.add(other)
    assert adding.times() == before
    (adding.folder / "patient_0.pkl").unlink()  # as it says
    (other / "patient_1.nii.gz").unlink()
    adding.add(other)
    after = adding.times()
    assert after["patient_0.b2nd"] > before["patient_0.b2nd"]
    assert after["patient_1.b2nd"] == before["patient_1.b2nd"]
    with pytest.raises(DataError, match=r"1 image of the same name .*: patient_0\."):
        adding.add(first)
    assert {path.suffix for path in adding.folder.iterdir()} == {".b2nd", ".pkl"}  # nnU-Net refuses others


def test_a_case_that_has_got_labels_counts_among_the_datasets_own(adding: Adding, tmp_path: Path) -> None:
    adding.add(write_images(tmp_path / "images", 2))
    own, plans = Path(adding.trainer.preprocessed_dataset_folder), adding.trainer.plans_manager.plans
    assert unlabelled_cases_of(own, plans, "3d_fullres", ["case"]) == ["patient_0", "patient_1"]
    # as long as no fold has it, it trains along as before
    assert unlabelled_cases_of(own, plans, "3d_fullres", ["case", "patient_1"]) == ["patient_0"]
    # and another plan than its old copy's is no matter
    adding.plan(spacing=2.0)
    now = preprocessing_of(adding.trainer.plans_manager.plans, "3d_fullres")
    refuse_other_preprocessing(adding.folder, [], now)
    with pytest.raises(DataError, match="1 case without labels preprocessed before the plan was changed: patient_0"):
        refuse_other_preprocessing(adding.folder, ["patient_0"], now)


def test_another_plan_preprocesses_them_again(adding: Adding, tmp_path: Path) -> None:
    images, more = write_images(tmp_path / "images", 2), write_images(tmp_path / "more", 1)
    (more / "patient_0.nii.gz").rename(more / "extra.nii.gz")
    adding.add(images)
    adding.add(more)
    assert preprocessed_cases(adding.folder).load_case("patient_0")[0].shape == (1, 12, 12, 12)
    adding.plan(spacing=2.0)
    own = preprocessing_of(adding.trainer.plans_manager.plans, "3d_fullres")
    told = r"3 cases without labels preprocessed before the plan was changed: extra, patient_0, patient_1\. Give their images"
    with pytest.raises(DataError, match=told):
        refuse_other_preprocessing(adding.folder, adding.names(), own)
    adding.add(images)
    assert preprocessed_cases(adding.folder).load_case("patient_0")[0].shape == (1, 6, 6, 6)
    with pytest.raises(DataError, match="1 case without labels preprocessed before the plan was changed: extra"):
        refuse_other_preprocessing(adding.folder, adding.names(), own)
    adding.add(more)
    refuse_other_preprocessing(adding.folder, adding.names(), own)


def test_folders_of_older_versions_are_believed(adding: Adding, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    adding.add(images)
    sources_path(adding.folder).unlink()
    before = adding.times()
    other = brighter(images, tmp_path / "other")
    assert adding.add(other) == ["patient_0", "patient_1"]
    assert adding.times() == before
    sitk.WriteImage(sitk.ReadImage(str(images / "patient_0.nii.gz")), str(other / "new.nii.gz"))
    adding.add(other)
    assert list(read_sources(adding.folder)) == ["new"]
    sources_path(adding.folder).write_text("{")
    with pytest.raises(DataError, match="Delete it if they are those that you mean"):
        adding.add(other)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_voxels_that_are_no_numbers(reader: str, adding: Adding, tmp_path: Path) -> None:
    """ITK replaces them by zero, nibabel hands them on, and a teacher would say background everywhere."""
    images, values = write_images(tmp_path / "images", 1), np.ones((12, 12, 12), np.float32)
    values[0, 0, :3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), images / "broken.nii.gz")
    adding.plan(reader)
    with pytest.raises(DataError, match="case broken: 3 voxels NaN or infinite"):
        adding.add(images)
    assert not list(adding.folder.iterdir())


def test_images_of_four_dimensions_hold_all_channels(adding: Adding, tmp_path: Path) -> None:
    """No segmentation is written of them, so that ITK's reader takes them."""
    images = tmp_path / "images"
    images.mkdir()
    values = np.random.default_rng(0).random((12, 12, 12, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), images / "both.nii.gz")
    adding.trainer.dataset_json = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}
    adding.trainer.plans_manager = PlansManager(tiny_plans(channels=2))
    adding.add(images)
    assert preprocessed_cases(adding.folder).load_case("both")[0].shape[0] == 2


@pytest.mark.parametrize("live_helps", [True, False])
def test_too_little_memory_advises_what_helps(live_helps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images without labels learn from stored soft labels alone, and shrink stores them always."""
    monkeypatch.setattr(soften_module, "available_bytes", lambda: 1)
    trainer: Any = SimpleNamespace(label_manager=SimpleNamespace(num_segmentation_heads=3))
    with pytest.raises(MissingRequirement, match="Use a computer with more, or ") as refused:
        soften_module._check_memory(trainer, {"case": (2, 9, 9, 9)}, live_helps)
    assert ("source=live" in str(refused.value)) == live_helps
    assert ("leave this image out" in str(refused.value)) != live_helps
