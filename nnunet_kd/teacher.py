"""The teacher: any trained nnU-Net model folder. Found, checked against the student, frozen.

Everything that can be wrong with a teacher is found here, before training starts.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import ModelError, PlanError, TeacherError
from nnunet_kd.features import plain_module
from nnunet_kd.files import sha256
from nnunet_kd.frozen_teacher import FrozenTeacher
from nnunet_kd.model_archive import unpack_model
from nnunet_kd.model_folder import ModelFolder, load_predictor, new_predictor
from nnunet_kd.plans import provenance, read_plans, stage_channels
from nnunet_kd.settings import TeacherSettings

HOW_TO_POINT = (
    "Point at one with `-t PATH` (nnunet-kd train), `--set teacher=PATH`, or `teacher: PATH` in the settings file; PATH is a "
    "model folder, a checkpoint_*.pth or an exported zip."
)


@dataclass(frozen=True)
class TeacherSource:
    """One trained fold on disk.

    Attributes:
        model_folder: holds ``plans.json``, ``dataset.json`` and ``fold_X``.
        fold: ``X``, a number or ``all``.
        checkpoint: file name within the fold's folder.
        origin: the zip it was unpacked from, if any.
    """

    model_folder: Path
    fold: str
    checkpoint: str
    origin: Path | None = None

    @property
    def checkpoint_path(self) -> Path:
        """The checkpoint's file."""
        return self.model_folder / f"fold_{self.fold}" / self.checkpoint

    @property
    def configuration(self) -> str:
        """The configuration's name, the last part of the model folder's."""
        return self.model_folder.name.split("__")[-1]

    @property
    def model(self) -> ModelFolder:
        """The same as a model of one fold."""
        return ModelFolder(self.model_folder, (self.fold,), self.checkpoint)

    def plans(self) -> dict[str, Any]:
        """The model folder's plan."""
        with _errors_of_a_teacher():
            return self.model.plans()

    def dataset_json(self) -> dict[str, Any]:
        """The model folder's dataset description."""
        with _errors_of_a_teacher():
            return self.model.dataset_json()

    def __str__(self) -> str:
        return f"{self.origin}: {self.model_folder.name}/fold_{self.fold}" if self.origin else str(self.checkpoint_path)


def locate_teacher(
    settings: TeacherSettings,
    results_folder: Path | None,
    dataset_name: str,
    teacher_plans_name: str,
    configuration: str,
    fold: int | str,
    unpack_to: Path | None = None,
) -> TeacherSource:
    """Find the teacher that the settings mean.

    Without a path: the model folders of this dataset, plan and configuration under ``results_folder``, students left out,
    ``nnUNetTrainer`` preferred over its variants.

    Args:
        settings: path, fold and checkpoint, each optional.
        results_folder: ``nnUNet_results``; ``None`` if it is not set.
        dataset_name, teacher_plans_name, configuration, fold: what the teacher must have been trained on and with.
        unpack_to: where an exported zip's needed files go; a temporary folder that the caller removes.

    Raises:
        TeacherError: none or several found, or the path does not lead to a trained fold; lists what was found.
    """
    wanted_fold = str(fold if settings.fold is None else settings.fold)
    if settings.path is not None:
        return _from_path(Path(settings.path).expanduser(), wanted_fold, settings, configuration, unpack_to)
    if results_folder is None:
        raise TeacherError(f"nnUNet_results is not set, so no teacher can be searched for. Set it, or: {HOW_TO_POINT}")

    folder = results_folder / dataset_name
    usable, unusable = [], []
    for candidate in sorted(folder.glob(f"*__{teacher_plans_name}__{configuration}")):
        problem = _why_unusable(candidate, configuration, wanted_fold, settings.checkpoint)
        (unusable.append(f"{candidate.name} ({problem})") if problem else usable.append(candidate))
    found = f" Found but not usable: {'; '.join(unusable)}." if unusable else ""
    preferred = [candidate for candidate in usable if candidate.name.split("__")[0] == "nnUNetTrainer"]
    if not usable:
        raise TeacherError(
            f"no teacher for {dataset_name}, plan {teacher_plans_name}, configuration {configuration}, fold {wanted_fold} "
            f"under {folder}.{found} Train one with `nnUNetv2_train {dataset_name} {configuration} {wanted_fold} "
            f"-p {teacher_plans_name}`. {HOW_TO_POINT}"
        )
    if len(usable) > 1 and not preferred:
        names = ", ".join(candidate.name for candidate in usable)
        raise TeacherError(f"several teachers under {folder}: {names}; none is the plain nnUNetTrainer. {HOW_TO_POINT}")
    return TeacherSource((preferred or usable)[0], wanted_fold, settings.checkpoint)


def _why_unusable(folder: Path, configuration: str, fold: str, checkpoint: str) -> str | None:
    """Why a model folder cannot teach; ``None`` if it can."""
    if not (folder / "plans.json").is_file():
        return "no plans.json: training has not started"
    try:
        if provenance(read_plans(folder / "plans.json"), configuration) is not None:
            return "a student"
    except PlanError as error:
        return str(error)
    if (folder / f"fold_{fold}" / checkpoint).is_file():
        return None
    folds = sorted(path.parent.name for path in folder.glob(f"fold_*/{checkpoint}"))
    others = sorted(path.name for path in (folder / f"fold_{fold}").glob("checkpoint_*.pth"))
    if others:
        return f"fold_{fold} has no {checkpoint} but {', '.join(others)}, see `teacher.checkpoint`"
    return f"no fold_{fold}/{checkpoint}" + (f", only {', '.join(folds)}, see `teacher.fold`" if folds else "")


def _from_path(
    path: Path, fold: str, settings: TeacherSettings, configuration: str, unpack_to: Path | None
) -> TeacherSource:
    if not path.exists():
        raise TeacherError(f"the teacher {path} does not exist. {HOW_TO_POINT}")
    if path.suffix == ".zip":
        return _from_zip(path, fold, settings, configuration, unpack_to)
    if path.is_file():
        if not path.parent.name.startswith("fold_"):
            raise TeacherError(
                f"the checkpoint {path} does not lie in a fold_X folder of a model folder, so its plans.json and dataset.json "
                f"cannot be found. {HOW_TO_POINT}"
            )
        return TeacherSource(path.parent.parent, path.parent.name.removeprefix("fold_"), path.name)
    if path.name.startswith("fold_"):
        path, fold = path.parent, path.name.removeprefix("fold_")
    problem = _why_unusable(path, path.name.split("__")[-1], fold, settings.checkpoint)
    if problem == "a student":
        raise TeacherError(f"{path} holds a student of this package, which cannot be a teacher. {HOW_TO_POINT}")
    if problem:
        raise TeacherError(f"the teacher {path} cannot be used: {problem}. {HOW_TO_POINT}")
    return TeacherSource(path, fold, settings.checkpoint)


def _from_zip(
    path: Path, fold: str, settings: TeacherSettings, configuration: str, unpack_to: Path | None
) -> TeacherSource:
    target = unpack_to or Path(tempfile.mkdtemp(prefix="nnunet_kd_teacher_"))
    needed = ("plans.json", "dataset.json", f"fold_{fold}/{settings.checkpoint}")
    with _errors_of_a_teacher():
        folder = unpack_model(path, target, configuration, needed)
    return TeacherSource(folder, fold, settings.checkpoint, origin=path)


@contextlib.contextmanager
def _errors_of_a_teacher() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise TeacherError(f"the teacher cannot be used: {error} {HOW_TO_POINT}") from error


def check_teacher(
    source: TeacherSource, student_plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> None:
    """Compare what teacher and student expect of their data and how their encoders shrink it.

    Raises:
        TeacherError: names everything that differs.
    """
    plans, teacher_dataset = source.plans(), source.dataset_json()
    if source.configuration not in plans["configurations"]:
        raise TeacherError(f"the plan in {source.model_folder} has no configuration {source.configuration!r}.")
    if provenance(plans, source.configuration) is not None:
        raise TeacherError(f"{source.model_folder} holds a student, which cannot be a teacher. {HOW_TO_POINT}")
    comparisons: list[tuple[str, Callable[[Mapping[str, Any], str, Mapping[str, Any]], Any]]] = [
        ("input channels", _input_channels),
        ("labels", lambda p, c, d: list(d["labels"].items())),
        ("regions_class_order", lambda p, c, d: d.get("regions_class_order")),
        ("patch size", lambda p, c, d: _configuration(p, c).patch_size),
        ("strides per stage", lambda p, c, d: _configuration(p, c).pool_op_kernel_sizes),
        ("spacing", lambda p, c, d: _configuration(p, c).spacing),
        ("axis order (transpose_forward)", lambda p, c, d: p["transpose_forward"]),
        ("normalization", lambda p, c, d: _configuration(p, c).normalization_schemes),
    ]
    differences = []
    for what, read in comparisons:
        teacher, student = (
            read(plans, source.configuration, teacher_dataset),
            read(student_plans, configuration, dataset_json),
        )
        if json.dumps(teacher) != json.dumps(student):
            differences.append(f"{what}: teacher {teacher}, student {student}")
    if differences:
        raise TeacherError(
            f"the teacher {source} (trained on {plans['dataset_name']}) does not fit the student's "
            f"{student_plans['dataset_name']}, {configuration}. What differs: {'; '.join(differences)}. "
            f"Teacher and student must see the same data in the same way: take a teacher trained with the same dataset and plan."
        )


def _configuration(plans: Mapping[str, Any], configuration: str) -> Any:
    return PlansManager(dict(plans)).get_configuration(configuration)


def _input_channels(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> int:
    manager = PlansManager(dict(plans))
    return int(determine_num_input_channels(manager, manager.get_configuration(configuration), dict(dataset_json)))


def pin_teacher(source: TeacherSource, wanted: TeacherSettings) -> TeacherSettings:
    """Settings that say exactly which checkpoint ``source`` is.

    Raises:
        TeacherError: it has not the hash that is wanted.
    """
    digest = sha256(source.checkpoint_path)
    if wanted.sha256 is not None and digest != wanted.sha256:
        raise TeacherError(
            f"the teacher {source} has SHA-256 {digest}, but the settings ask for {wanted.sha256}: it is another checkpoint "
            f"than the one meant. Give the right one, or leave `teacher.sha256` out of the settings."
        )
    return TeacherSettings(
        path=str((source.origin or source.model_folder).resolve()),
        fold="all" if source.fold == "all" else int(source.fold),
        checkpoint=source.checkpoint,
        sha256=digest,
        trusted=wanted.trusted,
    )


def load_teacher(
    source: TeacherSource, device: torch.device, compiled: bool = False, trusted: bool = False
) -> FrozenTeacher:
    """Build and freeze the teacher, with strictly matching weights.

    Args:
        source: from :func:`locate_teacher`.
        device: the student's.
        compiled: use ``torch.compile``, as nnU-Net does for the student.
        trusted: load the checkpoint even if it holds more than data (docs/explanation-security.md).

    Raises:
        TeacherError: the checkpoint is damaged, incomplete or of another network, holds more than data, or its trainer class
            is not found.
    """
    predictor = new_predictor()
    try:
        load_predictor(source.model, predictor, trusted)
    except ModelError as error:
        raise TeacherError(
            f"the teacher {source} cannot be loaded: {error} For a damaged one, copy it again or take another one; if it "
            f"is whole and you know who made it, `--set teacher.trusted=true` loads whatever it holds. {HOW_TO_POINT}"
        ) from error
    channels = stage_channels(source.plans(), source.configuration)
    return FrozenTeacher(plain_module(predictor.network), channels, device, compiled)
