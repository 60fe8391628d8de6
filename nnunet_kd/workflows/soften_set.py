"""The set that soft labels belong to: its teachers found and described, its description written once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.soft_labels.description import (
    FILE,
    Description,
    SoftTeacher,
    leaks_told,
    read_description,
)
from nnunet_kd.distillation.soft_labels.teachers import place_in_results
from nnunet_kd.distillation.teacher import found_teacher
from nnunet_kd.distillation.teacher_source import TeacherSource
from nnunet_kd.errors import DataError, SettingsError, TeacherError
from nnunet_kd.models.training_cases import own_training_cases, split_training_cases, validation_cases
from nnunet_kd.nnunet.environment import optional_folder
from nnunet_kd.system.files import remove_leftovers, write_atomically
from nnunet_kd.training.trainer import DistillationTrainer


def find_soft_teacher(
    trainer: DistillationTrainer, wanted: TeacherSettings, fold: int | str, opened: contextlib.ExitStack
) -> tuple[TeacherSource, TeacherSettings]:
    """A teacher of one fold, which stays unpacked as long as ``opened`` lasts.

    Raises:
        TeacherError: there is none, or it does not fit.
    """
    of_fold = wanted.model_copy(update={"fold": fold if fold == "all" else int(fold), "folds": None})
    found = found_teacher(
        of_fold,
        optional_folder("nnUNet_results"),
        trainer.plans_manager.plans,
        trainer.configuration_name,
        fold,
        trainer.dataset_json,
        stages=False,
    )
    teacher = opened.enter_context(found)
    return teacher.source, teacher.settings


def describe_teacher(
    trainer: DistillationTrainer,
    source: TeacherSource,
    pinned: TeacherSettings,
    known: Mapping[str, Sequence[str]] | None,
) -> SoftTeacher:
    """A teacher as the set's description names it.

    Args:
        trainer: of the student.
        source, pinned: of the teacher.
        known: training cases by fold; ``None``: as the split that lies with the model says, else that of its dataset, where one
            can be read.
    """
    assert pinned.sha256 is not None
    assert pinned.path is not None
    if known is None and source.plans()["dataset_name"] == trainer.plans_manager.dataset_name:
        known = own_training_cases(source.model) or {source.fold: _training_cases(trainer, source)}
    elif known is None:
        known = split_training_cases(source.model)
    return SoftTeacher(
        sha256=pinned.sha256,
        model=source.model_folder.name,
        fold="all" if source.fold == "all" else int(source.fold),
        checkpoint=source.checkpoint,
        trained_on=sorted(known[source.fold]) if source.fold in known else None,
        path=place_in_results(Path(pinned.path), optional_folder("nnUNet_results")),
    )


def _training_cases(trainer: DistillationTrainer, source: TeacherSource) -> Sequence[str]:
    """Of a teacher of the same dataset, as its split says.

    If the split has changed since the teacher was validated, it was trained on all cases but those that its summary names.
    """
    own, fold = trainer.fold, source.fold
    try:
        trainer.fold = fold if fold == "all" else int(fold)
        training, validation = ([str(case) for case in part] for part in trainer.do_split())
    finally:
        trainer.fold = own
    validated = set(validation_cases(source.model, fold))
    if fold == "all" or not validated or validated == set(validation):
        return training
    return sorted({*training, *validation} - validated)


def check_out_of_fold(description: Description, fold: int | str) -> None:
    """Whether a set of maps by teachers that were not trained on their cases can be made for a student's fold.

    Raises:
        SettingsError: the student has one fold.
        TeacherError: there is one teacher only, or it is not known what one was trained on.
    """
    if len(description.teachers) < 2 or any(one.trained_on is None for one in description.teachers):
        raise TeacherError(
            "--out-of-fold needs several folds of one model of this dataset, whose splits say who was trained on what: for "
            "example -f 0 1 2 3 4."
        )
    if fold != "all":
        raise SettingsError(
            f"--out-of-fold makes maps for a student of all cases, whose fold is all; fold {fold} validates on cases that some "
            f"of these teachers were trained on. Use: fold all, or leave --out-of-fold and -f out."
        )


def check_folds(folds: Sequence[int | str], sources: Sequence[TeacherSource]) -> None:
    """Whether the teachers are of the folds that were asked for: the path of one fold or checkpoint is of that fold alone.

    Raises:
        SettingsError: a fold is named twice.
        TeacherError: a teacher is of another fold.
    """
    if len(set(folds)) < len(folds):
        raise SettingsError(f"-f {' '.join(map(str, folds))}: a fold is named twice. Name each fold once.")
    for fold, source in zip(folds, sources, strict=bool(folds)):
        if source.fold != str(fold):
            raise TeacherError(
                f"-f names fold {fold}, and the teacher's path is of fold {source.fold} alone. Give the model folder, "
                f"-t {source.model_folder}, or leave -f out."
            )


def check_leaks(description: Description, trainer: DistillationTrainer) -> None:
    """Whether a student of the trainer's fold may learn from these teachers: told before hours of work, not after.

    Raises:
        TeacherError: one was trained on cases that this fold validates on.
    """
    if told := leaks_told(description, trainer.fold, [str(case) for case in trainer.do_split()[1]]):
        raise TeacherError(
            f"these teachers were trained on validation cases of fold {trainer.fold} ({told}). A student of "
            f"fold {trainer.fold} that learned from them would look better than it is. Take the teacher of this fold: leave -f "
            f"out, and give -t a model folder. Several folds, or --out-of-fold, are for a student of fold all. If this is "
            f"meant: --allow-leak here, and objectives.soft.allow_leak=true in the training."
        )


def write_description(folder: Path, description: Description) -> None:
    """Put a set's description into its folder, unless it is there; what killed processes left of maps goes.

    Raises:
        DataError: there are maps of the same teachers, which other cases are known to be trained on.
        MissingRequirement: the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    if (folder / FILE).is_file() and (there := _description_there(folder)) is not None:
        if _cases_known(there, description):
            return  # its hash, which trainings have saved, stays
        if there.digest() == description.digest() and list(folder.glob("*.b2nd")):
            raise DataError(
                f"{folder} has maps of the same teachers, but the dataset's splits have changed since. Rename or delete that "
                f"folder, then run this again."
            )
    text = description.model_dump_json(indent=2).encode()
    write_atomically(folder / FILE, lambda file: file.write(text))


def _description_there(folder: Path) -> Description | None:
    """That of a set; ``None`` if it cannot be read and describes no map, so that it can be written anew.

    Raises:
        DataError: it cannot be read, and there are maps.
    """
    try:
        return read_description(folder)
    except DataError:
        if any(folder.glob("*.b2nd")):
            raise
        return None


def _cases_known(there: Description, now: Description) -> bool:
    """Whether both say the same; where a model lies now, and a split that could be read meanwhile, are no difference."""
    if there.digest() != now.digest():
        return False
    pairs = [(one.trained_on, other.trained_on) for one, other in zip(there.teachers, now.teachers, strict=True)]
    return all(None in (before, after) or before == after for before, after in pairs)
