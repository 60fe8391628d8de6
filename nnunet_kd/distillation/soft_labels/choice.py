"""Which stored soft labels a student learns from; every reason against them is found before training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_kd.distillation.objectives.soft import SoftSettings
from nnunet_kd.distillation.soft_labels.description import (
    FILE,
    Description,
    leaks_told,
    read_description,
    sets_of,
    unknown_teachers,
)
from nnunet_kd.distillation.soft_labels.maps import is_whole, map_path
from nnunet_kd.distillation.soft_labels.student import Student
from nnunet_kd.distillation.soft_labels.teachers import RunTeacher, other_teacher, replaced_teacher
from nnunet_kd.errors import DataError
from nnunet_kd.system.counts import counted, some
from nnunet_kd.system.files import sha256

SHOWN = 3


@dataclass(frozen=True)
class ChosenMaps:
    """What :func:`choose_maps` found.

    Attributes:
        settings: say exactly which maps are meant.
        description: of these.
        warnings: what a reader of the log must know of them.
    """

    settings: SoftSettings
    description: Description
    warnings: tuple[str, ...]


def choose_maps(settings: SoftSettings, student: Student) -> ChosenMaps:
    """Which maps are meant, if they can be learned from.

    Raises:
        DataError: there is none, several fit, or the one that is named does not fit the student, is not complete, was made of
            other images or by another teacher than there are now, or its teachers were trained on cases that the student
            validates on. Says which command makes what is missing.
    """
    folder = _named(settings, student) if settings.maps is not None else _only_one(settings, student)
    description = read_description(folder)
    problem = _why_not(description, settings, student)
    if problem is not None:
        raise DataError(f"the soft labels in {folder} cannot be used: {problem}")
    digest = sha256(folder / FILE)
    if settings.maps_sha256 is not None and settings.maps_sha256 != digest:
        raise DataError(
            f"the soft labels in {folder} are others than those this training began with: their {FILE} has SHA-256 {digest}, "
            f"and the training's settings say {settings.maps_sha256}. Put the former ones back, or begin a new training."
        )
    _check_complete(folder, description, student)
    pinned = settings.model_copy(update={"maps": str(folder.resolve()), "maps_sha256": digest})
    return ChosenMaps(pinned, description, tuple(_warnings(description, settings, student)))


def _named(settings: SoftSettings, student: Student) -> Path:
    name = str(settings.maps)
    path = Path(name).expanduser()
    for folder in (path, student.parent / name):
        if (folder / FILE).is_file():
            return folder
    moved = student.parent / path.name  # a training that goes on where nnUNet_preprocessed lies elsewhere now
    if settings.maps_sha256 is not None and (moved / FILE).is_file():
        return moved
    there = sets_of(student.parent)
    begun = [folder for folder in there if folder.name.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    names = ", ".join(folder.name for folder in there) or "none"
    raise DataError(
        f"objectives.soft.maps: {name} is no folder of soft labels, nor how the name of just one begins. Under "
        f"{student.parent} there are: {names}. Soft labels of this training's teacher are made by `{student.own_command()}`; "
        f"then leave objectives.soft.maps out."
    )


def _only_one(settings: SoftSettings, student: Student) -> Path:
    fitting, others = [], []
    for folder in sets_of(student.parent):
        try:
            description = read_description(folder)
        except DataError as error:  # the other sets can be learned from
            others.append(f"{folder.name}: {error}")
            continue
        problem = _why_not(description, settings, student)
        (fitting.append(folder) if problem is None else others.append(f"{folder.name}: {problem}"))
    # what is not complete is no choice where others are
    fitting = [folder for folder in fitting if not _missing_maps(folder, student)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"several sets of soft labels fit: {', '.join(path.name for path in fitting)}. Name one: "
            f"--set objectives.soft.maps={fitting[0].name}"
        )
    command = replace(student.own_command(), allow_leak=settings.allow_leak)
    raise DataError(
        f"there are no soft labels for fold {student.fold} under {student.parent}. Make them first: `{command}`. "
        + (f"Found, but not usable: {' '.join(others)}" if others else "")
    )


def _why_not(description: Description, settings: SoftSettings, student: Student) -> str | None:
    """Why a student cannot learn from a set of maps, complete or not; ``None`` if it can."""
    if description.data != student.data:
        different = [key for key in student.data if description.data.get(key) != student.data[key]]
        return (
            f"their teachers saw data preprocessed in another way ({', '.join(different)}). Make new ones: "
            f"`{student.own_command()}`."
        )
    if (description.heads, description.has_regions) != (student.heads, student.has_regions):
        return (
            f"they are of {', '.join(description.heads)}, and the student learns {', '.join(student.heads)}. Make new ones: "
            f"`{student.own_command()}`."
        )
    leaks = leaks_told(description, student.fold, student.validation)
    if leaks and not settings.allow_leak:
        return (
            f"their teachers were trained on validation cases of fold {student.fold} ({leaks}), so validation would look better "
            f"than it is. Take maps of the teacher of this fold: `{student.own_command().of_own_fold()}`. Or say that this "
            f"is meant: --set objectives.soft.allow_leak=true."
        )
    # which maps a training began with is said by their hash, and it may go on with them
    if settings.maps_sha256 is None and (replaced := replaced_teacher(description, student.teachers)):
        return f"{_replaced(replaced)} Make new ones: `{student.command_of(description)}`."
    if settings.maps is None and (other := other_teacher(description, student.used())):
        return (
            f"{_other(other)} Make maps of that teacher: `{student.own_command()}`. Or give the training the teacher of the maps "
            f"(teacher=PATH). Or say that both are meant, by naming the maps: objectives.soft.maps."
        )
    return None


def _replaced(file: str) -> str:
    return f"they were made by another checkpoint than lies in {file} now; it was trained again or replaced."


def _other(teacher: RunTeacher) -> str:
    return (
        f"they were made by another teacher of fold {teacher.fold} than this training uses, {teacher.where} "
        f"(SHA-256 {teacher.sha256[:12]})."
    )


def _warnings(description: Description, settings: SoftSettings, student: Student) -> list[str]:
    found = []
    if settings.allow_leak:
        leaks = leaks_told(description, student.fold, student.validation)
        told = f": {leaks} validation cases" if leaks else ""
        found.append(
            "objectives.soft.allow_leak is set: teachers may have been trained on this fold's validation cases, and validation "
            f"may look better than it is{told}."
        )
    elif student.fold != "all" and (unknown := unknown_teachers(description)):
        found.append(
            f"what {', '.join(unknown)} was trained on is not known. If it was trained on validation cases of fold "
            f"{student.fold}, validation looks better than it is."
        )
    if settings.temperature != 1:
        found.append(
            f"objectives.soft.temperature is {settings.temperature:g}, and stored probabilities below 1/510 are 0: at this "
            f"temperature they differ more from the teacher's than at 1. With objectives.soft.source=live they do not."
        )
    if replaced := replaced_teacher(description, student.teachers):
        found.append(f"the soft labels: {_replaced(replaced)}")
    if other := other_teacher(description, student.used()):
        found.append(f"the soft labels: {_other(other)}")
    return found


def _missing_maps(folder: Path, student: Student) -> list[str]:
    return [case for case in student.training if not map_path(folder, case).is_file()]


def _check_complete(folder: Path, description: Description, student: Student) -> None:
    missing = _missing_maps(folder, student)
    unseen = [case for case in missing if not description.teachers_of(case)]
    if unseen:
        whole = replace(student.command_of(description), out_of_fold=False)
        raise DataError(
            f"{len(unseen)} of {counted(len(student.training), 'training case')} have no map in {folder}, because every teacher "
            f"of this set was trained on them: {some(unseen, SHOWN)}. Add the folds that validate on them to -f. Or take the "
            f"mean of these teachers for all cases: `{whole}`."
        )
    channels = len(description.heads)
    stale, changed = [], []
    for case in sorted({*student.training} - {*missing}):
        image = student.image_of(case)
        if not is_whole(folder, case, (channels, *image.shape[1:])):
            stale.append(case)
        elif not image.is_that_of(folder):
            changed.append(case)
    for cases, what in (
        (missing, "have no map"),
        (stale, "have a map that cannot be read, or of another shape than the image"),
        (changed, "have a map of another image than is there now"),
    ):
        if cases:
            raise DataError(
                f"{len(cases)} of {counted(len(student.training), 'training case')} {what} in {folder}: {some(cases, SHOWN)}. "
                f"`{student.command_of(description)}` makes the rest; what is there is kept if it fits."
            )
