"""The proof's two datasets: made ready from the data and teachers that are given (docs/explanation-proof.md)."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import hippocampus
from hippocampus import copy_folder, is_preprocessed
from long_commands import run

from nnunet_kd.distillation.settings_sources import DATASET_FILE
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.files import sha256
from nnunet_kd.volumes.wholeness import find_damage

FOLD = "0"


@dataclass(frozen=True)
class Dataset:
    """One of the two datasets.

    Attributes:
        name: nnU-Net's.
        plans: the teacher's plan.
        nsd_tolerance: mm, fixed beforehand.
        teacher_sha256: of its checkpoint.
    """

    name: str
    plans: str
    nsd_tolerance: float
    teacher_sha256: str

    @property
    def teacher(self) -> Path:
        """The teacher's model folder."""
        model = f"nnUNetTrainer_20epochs__{self.plans}__3d_fullres"
        return Path(os.environ["nnUNet_results"], self.name, model)

    @property
    def number(self) -> str:
        """As nnU-Net's commands take it."""
        return str(int(self.name[len("Dataset") :].split("_")[0]))

    @property
    def training_cases(self) -> list[str]:
        """Of the fold."""
        return self._cases("train")

    @property
    def validation_cases(self) -> list[str]:
        """Of the fold."""
        return self._cases("val")

    def _cases(self, part: str) -> list[str]:
        splits = Path(os.environ["nnUNet_preprocessed"], self.name, "splits_final.json")
        found: list[str] = json.loads(splits.read_text())[int(FOLD)][part]
        return found

    @property
    def teacher_predictions(self) -> Path:
        """Folder with the teacher's segmentations of the validation cases."""
        return self.teacher / f"fold_{FOLD}" / "validation"

    @property
    def teacher_predicted(self) -> bool:
        """Whether all validation cases are there; a run that was killed leaves some."""
        return all((self.teacher_predictions / f"{case}.nii.gz").is_file() for case in self.validation_cases)


HIPPOCAMPUS = Dataset(
    hippocampus.DATASET, "nnUNetPlans", 1.0, "beb1f896e57528cc502df07ba040b5e661018b2c63527186f5f47c3682e3c9d1"
)
ACDC = Dataset(
    "Dataset027_ACDC", "nnUNetPlans3mm", 1.5, "4054d688e651dc90bb45a0fd36bf8855f638151740a863c80e3ce3ae5b6c9075"
)
QUEUE = {
    "hippocampus": HIPPOCAMPUS,
    "acdc": ACDC,
    "hippocampus-curves": HIPPOCAMPUS,
    "acdc-curves": ACDC,
    "hippocampus-objectives": HIPPOCAMPUS,
    "hippocampus-long": HIPPOCAMPUS,
}
"""Sweeps in the order in which they are trained, so that what does not fit is left out from the bottom."""


def prepare(data: Path, teacher: Path, acdc: Path, device: str, measured: Collection[Dataset] = ()) -> None:
    """Both datasets, plans, splits, teachers and their predictions; what is there already is kept.

    Args:
        data: the hippocampus task in the layout of the Medical Segmentation Decathlon.
        teacher: the folder with the hippocampus teacher and its split.
        acdc: the folder with the cardiac dataset, its plan, split and teacher.
        device: to predict on.
        measured: datasets whose teacher needs to predict no more, since its values are kept.
    """
    for dataset in (HIPPOCAMPUS, ACDC):
        remove_damaged(dataset.teacher_predictions)
    hippocampus.prepare(data, teacher, device, HIPPOCAMPUS not in measured)
    prepare_acdc(acdc)
    if ACDC not in measured and not ACDC.teacher_predicted:
        predict_acdc(device)
    for dataset in (HIPPOCAMPUS, ACDC):
        check_teacher(dataset, predicted=dataset not in measured)


def remove_damaged(folder: Path) -> None:
    """Segmentations that a kill left half written: nnU-Net goes on after them, and they cannot be read."""
    for path in folder.glob("*.nii.gz"):
        if (damage := find_damage(path)) is not None:
            print(f"{path} {damage}: predicted again", flush=True)
            path.unlink()


def check_teacher(dataset: Dataset, predicted: bool) -> None:
    """End unless the teacher is the one that the protocol means and, if asked for, has predicted every validation case."""
    checkpoint = dataset.teacher / f"fold_{FOLD}" / FINAL
    if not checkpoint.is_file() or (predicted and not dataset.teacher_predicted):
        sys.exit(f"{dataset.teacher}: the teacher or its predictions are not complete. Run: proof.py prepare ...")
    if (found := sha256(checkpoint)) != dataset.teacher_sha256:
        sys.exit(f"{checkpoint} has the SHA-256 {found}; the protocol's teacher has {dataset.teacher_sha256}.")
    settings = Path(os.environ["nnUNet_preprocessed"], dataset.name, DATASET_FILE)
    if settings.exists():
        sys.exit(f"{settings} would change every row of the proof. Move it away.")


def prepare_acdc(source: Path) -> None:
    """As the data's README says."""
    raw, preprocessed = (Path(os.environ[name], ACDC.name) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    if not is_preprocessed(preprocessed / f"{ACDC.plans}_3d_fullres", raw):
        if not raw.is_dir():
            copy_folder(source / ACDC.name, raw)
        run("nnUNetv2_extract_fingerprint", "-d", ACDC.number)
        spacing = ("-overwrite_target_spacing", "10", "3", "3")
        run("nnUNetv2_plan_experiment", "-d", ACDC.number, *spacing, "-overwrite_plans_name", ACDC.plans)
        for name in (f"{ACDC.plans}.json", "splits_final.json"):
            shutil.copy(source / name, preprocessed)
        run("nnUNetv2_preprocess", "-d", ACDC.number, "-c", "3d_fullres", "-plans_name", ACDC.plans)
    if not ACDC.teacher.is_dir():
        copy_folder(source / "teacher" / ACDC.name / ACDC.teacher.name, ACDC.teacher)


def predict_acdc(device: str) -> None:
    """Its teacher's validation cases; not by ``nnUNetv2_train --val``: the checkpoint has no optimizer state."""
    raw = Path(os.environ["nnUNet_raw"], ACDC.name)
    with tempfile.TemporaryDirectory() as images:
        for case in ACDC.validation_cases:
            name = f"{case}_0000.nii.gz"
            Path(images, name).symlink_to((raw / "imagesTr" / name).resolve())
        told = ("-d", ACDC.number, "-c", "3d_fullres", "-p", ACDC.plans, "-tr", ACDC.teacher.name.split("__")[0])
        run(
            "nnUNetv2_predict",
            "-i",
            images,
            "-o",
            ACDC.teacher_predictions,
            *told,
            "-f",
            FOLD,
            "-device",
            device,
            "--continue_prediction",
        )
