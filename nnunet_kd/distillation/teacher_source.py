"""Where the teacher is: any trained nnU-Net model folder, one of its checkpoints, or an exported zip."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.errors import ModelError, PlanError, TeacherError
from nnunet_kd.models.archive import files_of_model, is_archive, unpack_model
from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.models.plans import provenance, read_plans
from nnunet_kd.models.training_cases import SUMMARY
from nnunet_kd.nnunet.environment import STOCK_TRAINER
from nnunet_kd.nnunet.folds import SPLITS_FILE, split_model_path

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
        configuration: that it was trained with; the model folder may have any name.
        origin: the zip it was unpacked from, if any.
    """

    model_folder: Path
    fold: str
    checkpoint: str
    configuration: str
    origin: Path | None = None

    @property
    def checkpoint_path(self) -> Path:
        """The checkpoint's file."""
        return self.model_folder / f"fold_{self.fold}" / self.checkpoint

    @property
    def model(self) -> ModelFolder:
        """The same as a model of one fold."""
        return ModelFolder(self.model_folder, (self.fold,), self.checkpoint)

    def plans(self) -> dict[str, Any]:
        """The model folder's plan."""
        with errors_of_a_teacher():
            return self.model.plans()

    def dataset_json(self) -> dict[str, Any]:
        """The model folder's dataset description."""
        with errors_of_a_teacher():
            return self.model.dataset_json()

    def __str__(self) -> str:
        return f"{self.origin}: {self.model_folder.name}/fold_{self.fold}" if self.origin else str(self.checkpoint_path)


def locate_teacher(
    settings: TeacherSettings,
    results_folder: Path | None,
    student_plans: Mapping[str, Any],
    configuration: str,
    fold: int | str,
    unpack_to: Path,
) -> TeacherSource:
    """Find the teacher that the settings mean.

    Without a path: the model folders of the student's dataset, of the plan that the student's was made from, and of this
    configuration under ``results_folder``, students left out, ``nnUNetTrainer`` preferred over its variants.

    Args:
        settings: path, fold and checkpoint, each optional.
        results_folder: ``nnUNet_results``; ``None`` if it is not set.
        student_plans: a plan from :func:`~nnunet_kd.models.plans.reduce_plans`.
        configuration, fold: the student's.
        unpack_to: where an exported zip's needed files go; a temporary folder that the caller removes.

    Raises:
        TeacherError: none or several found, or the path does not lead to a trained fold; lists what was found.
    """
    wanted_fold = str(fold if settings.fold is None else settings.fold)
    if settings.path is not None:
        return _from_path(Path(settings.path).expanduser(), wanted_fold, settings, configuration, unpack_to)
    if results_folder is None:
        raise TeacherError(f"nnUNet_results is not set, so no teacher can be searched for. Set it, or: {HOW_TO_POINT}")

    dataset_name = student_plans["dataset_name"]
    marked = provenance(student_plans, configuration)
    if marked is None:
        raise PlanError(f"the plan of {dataset_name}, configuration {configuration}, is not a student's.")
    teacher_plans_name = marked["teacher_plans_name"]
    folder = results_folder / dataset_name
    usable, unusable = [], []
    for candidate in sorted(folder.glob(f"*__{teacher_plans_name}__{configuration}")):
        problem = _why_unusable(candidate, configuration, wanted_fold, settings.checkpoint)
        (unusable.append(f"{candidate.name} ({problem})") if problem else usable.append(candidate))
    found = f" Found but not usable: {'; '.join(unusable)}." if unusable else ""
    preferred = [candidate for candidate in usable if candidate.name.split("__")[0] == STOCK_TRAINER]
    if not usable:
        training = ["nnUNetv2_train", dataset_name, configuration, wanted_fold, "-p", teacher_plans_name]
        raise TeacherError(
            f"no teacher for {dataset_name}, plan {teacher_plans_name}, configuration {configuration}, fold {wanted_fold} "
            f"under {folder}.{found} Train one with `{shlex.join(training)}`. {HOW_TO_POINT}"
        )
    if len(usable) > 1 and not preferred:
        names = ", ".join(candidate.name for candidate in usable)
        raise TeacherError(f"several teachers under {folder}: {names}; none is the plain nnUNetTrainer. {HOW_TO_POINT}")
    return TeacherSource((preferred or usable)[0], wanted_fold, settings.checkpoint, configuration)


def _why_unusable(folder: Path, configuration: str, fold: str, checkpoint: str) -> str | None:
    """Why a model folder cannot teach; ``None`` if it can."""
    if not (folder / "plans.json").is_file():
        return "it has no plans.json"
    try:
        if provenance(read_plans(folder / "plans.json"), configuration) is not None:
            return "a student"
    except PlanError as error:
        return str(error)
    return _why_untrained(_files_of_folds(folder), fold, checkpoint)


def _files_of_folds(folder: Path) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in folder.glob("fold_*/*")]


def _why_untrained(files: Collection[str], fold: str, checkpoint: str) -> str | None:
    """Why a model has not the checkpoint that is wanted; ``None`` if it has.

    Args:
        files: of the model, as ``fold_0/checkpoint_final.pth``.
        fold, checkpoint: that are wanted.
    """
    if f"fold_{fold}/{checkpoint}" in files:
        return None
    parts = [file.split("/") for file in sorted(files)]
    folds = [place for place, *name in parts if name == [checkpoint]]
    others = [name for place, *rest in parts if place == f"fold_{fold}" for name in rest if _is_checkpoint(name)]
    if others:
        return f"fold_{fold} has no {checkpoint} but {', '.join(others)}, see `teacher.checkpoint`"
    leak = "a teacher of another fold has seen validation cases of this one"
    return f"no fold_{fold}/{checkpoint}" + (f", only {', '.join(folds)}, see `teacher.fold` ({leak})" if folds else "")


def _is_checkpoint(name: str) -> bool:
    return name.startswith("checkpoint_") and name.endswith(".pth")


def _from_path(path: Path, fold: str, settings: TeacherSettings, configuration: str, unpack_to: Path) -> TeacherSource:
    if not path.exists():
        raise TeacherError(f"the teacher {path} does not exist. {HOW_TO_POINT}")
    if is_archive(path):
        return _from_zip(path, fold, settings, configuration, unpack_to)
    folder, own_fold, checkpoint = split_model_path(path)
    if path.is_file() and checkpoint is None:
        raise TeacherError(
            f"the checkpoint {path} does not lie in a fold_X folder of a model folder, so its plans.json and dataset.json "
            f"cannot be found. {HOW_TO_POINT}"
        )
    path, fold = folder, own_fold or fold
    settings = settings.model_copy(update={"checkpoint": checkpoint or settings.checkpoint})
    problem: str | None = "it has no plans.json"
    if (path / "plans.json").is_file():
        problem = _why_untrained(_files_of_folds(path), fold, settings.checkpoint)
    if problem:
        raise TeacherError(f"the teacher {path} cannot be used: {problem}. {HOW_TO_POINT}")
    return _of_folder(path, fold, settings)


def _from_zip(path: Path, fold: str, settings: TeacherSettings, configuration: str, unpack_to: Path) -> TeacherSource:
    needed = ("plans.json", "dataset.json", f"fold_{fold}/{settings.checkpoint}")
    files = files_of_model(path, configuration)
    told = (SPLITS_FILE, f"fold_{fold}/{SUMMARY}")  # which cases it was trained on
    with errors_of_a_teacher():
        try:
            folder = unpack_model(path, unpack_to, configuration, (*needed, *({*told} & {*(files or ())})))
        except ModelError as error:
            if files is None or (problem := _why_untrained(files, fold, settings.checkpoint)) is None:
                raise
            raise TeacherError(f"the teacher {path} cannot be used: {problem}. {HOW_TO_POINT}") from error
    return _of_folder(folder, fold, settings, path)


def _of_folder(folder: Path, fold: str, settings: TeacherSettings, origin: Path | None = None) -> TeacherSource:
    """A trained fold, whose checkpoint says which configuration it is of."""
    with errors_of_a_teacher():
        configuration = ModelFolder(folder, (fold,), settings.checkpoint).configuration(settings.trusted)
    return TeacherSource(folder, fold, settings.checkpoint, configuration, origin)


def previous_stage_segmentations(source: TeacherSource, previous: str, configuration: str) -> Path:
    """Where nnU-Net puts what a cascade's first stage hands on to its second, beside the teacher.

    Args:
        source: the teacher of the second stage.
        previous, configuration: the two stages.

    Raises:
        TeacherError: there is no such folder, or the teacher is an archive, beside which there is none.
    """
    if source.origin is not None:
        raise TeacherError(
            f"{configuration} is the second stage of a cascade and needs the first stage's segmentations, which lie beside its "
            f"teacher's model folder, but the teacher is the archive {source.origin}. Unpack it beside the folder of its first "
            f"stage ({previous}), and give the unpacked folder."
        )
    second = source.model_folder.resolve()  # a link may have any name
    model = f"{second.name.removesuffix(f'__{source.configuration}')}__{previous}"
    folder = second.with_name(model) / "predicted_next_stage" / configuration
    if not folder.is_dir():
        raise TeacherError(
            f"{configuration} is the second stage of a cascade and needs the first stage's segmentations in {folder}, which does "
            f"not exist. They are written when the teacher's {previous} finishes its validation on every fold "
            f"(nnUNetv2_train ... {previous} FOLD --val)."
        )
    return folder


@contextlib.contextmanager
def errors_of_a_teacher() -> Iterator[None]:
    """What is wrong with a model is wrong with the teacher."""
    try:
        yield
    except ModelError as error:
        raise TeacherError(f"the teacher cannot be used: {error} {HOW_TO_POINT}") from error
