"""Which stored soft labels a student learns from; every reason against them is found before training."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.objectives.soft import SoftSettings
from nnunet_kd.distillation.soft_labels.description import (
    FILE,
    FOLDER,
    Description,
    data_of,
    leaked_cases,
    read_description,
    sets_of,
)
from nnunet_kd.distillation.soft_labels.maps import is_whole, map_path
from nnunet_kd.errors import DataError
from nnunet_kd.nnunet.datasets import case_shape, preprocessed_cases
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import sha256

SHOWN = 3


@dataclass(frozen=True)
class Student:
    """What the maps of a student must fit.

    Attributes:
        parent: the folder with its dataset's sets, see :data:`~.description.FOLDER`.
        data: from :func:`~.description.data_of`.
        heads: foreground labels or regions, in the order of the network's outputs.
        has_regions: which of the two.
        training, validation: its fold's cases, and with the former those without labels.
        fold: a number or ``all``.
        shape_of: a training case's ``(channels, *spatial)``.
        command: makes the maps that are missing.
    """

    parent: Path
    data: dict[str, Any]
    heads: list[str]
    has_regions: bool
    training: Sequence[str]
    validation: Sequence[str]
    fold: int | str
    shape_of: Callable[[str], Sequence[int]]
    command: str


def foreground_heads(label_manager: Any) -> list[str]:
    """Names of a map's channels: foreground labels or regions, in the order of the network's outputs, without the background."""
    of = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    return [str(tuple(one)) if isinstance(one, (list, tuple)) else str(one) for one in of]


def sets_folder(cases: Path) -> Path:
    """Where the sets of maps of a folder of preprocessed cases lie."""
    return cases.parent / FOLDER / cases.name


def unlabelled_folder_of(cases: Path) -> Path:
    """Where cases without labels lie, beside a folder of preprocessed cases: ``DATASET/unlabelled/<data identifier>``.

    Apart from the dataset's own, so that stock nnU-Net, other trainers and new splits never take their dummy labels for labels.
    """
    return cases.parent / "unlabelled" / cases.name


def student_of(
    cases: Path,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    fold: int | str,
    training: Sequence[str],
    validation: Sequence[str],
    unlabelled: Sequence[str] = (),
) -> Student:
    """What the maps of a student must fit.

    Args:
        cases: folder of its preprocessed cases.
        plans, configuration, dataset_json: the student's.
        fold, training, validation: see :class:`Student`.
        unlabelled: further cases to train on, which lie in :func:`unlabelled_folder_of` that folder.
    """
    labels = PlansManager(dict(plans)).get_label_manager(dict(dataset_json))
    parts = [preprocessed_cases(cases, training)] if training else []
    parts += [preprocessed_cases(unlabelled_folder_of(cases), unlabelled)] if unlabelled else []
    shapes = {str(case): (part, str(case)) for part in parts for case in part.identifiers}
    return Student(
        parent=sets_folder(cases),
        data=data_of(plans, configuration),
        heads=foreground_heads(labels),
        has_regions=labels.has_regions,
        training=[*training, *unlabelled],
        validation=validation,
        fold=fold,
        shape_of=lambda case: case_shape(*shapes[case]),
        command=f"nnunet-kd soften {shlex.quote(str(plans['dataset_name']))} {configuration} {fold}",
    )


def choose_maps(settings: SoftSettings, student: Student) -> tuple[SoftSettings, Description]:
    """Settings that say exactly which maps are meant, and the description of these.

    Raises:
        DataError: there is none, several fit, or the one that is named does not fit the student, is not complete, or its teachers
            were trained on cases that the student validates on. Says which command makes what is missing.
    """
    folder = _named(settings.maps, student) if settings.maps is not None else _only_one(settings, student)
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
    return settings.model_copy(update={"maps": str(folder.resolve()), "maps_sha256": digest}), description


def _named(name: str, student: Student) -> Path:
    path = Path(name).expanduser()
    for folder in (path, student.parent / name):
        if (folder / FILE).is_file():
            return folder
    begun = [folder for folder, _ in sets_of(student.parent) if folder.name.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    there = ", ".join(path.name for path, _ in sets_of(student.parent)) or "none"
    raise DataError(
        f"objectives.soft.maps: {name} is no folder of soft labels, nor how the name of just one begins. Under "
        f"{student.parent} there are: {there}. They are made by `{student.command}`."
    )


def _only_one(settings: SoftSettings, student: Student) -> Path:
    fitting, others = [], []
    for folder, description in sets_of(student.parent):
        problem = _why_not(description, settings, student)
        (fitting.append(folder) if problem is None else others.append(f"{folder.name}: {problem}"))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"several sets of soft labels fit: {', '.join(path.name for path in fitting)}. Name one: "
            f"--set objectives.soft.maps={fitting[0].name}"
        )
    raise DataError(
        f"there are no soft labels for fold {student.fold} under {student.parent}. Make them first: `{student.command}`. "
        + (f"Found, but not usable: {' '.join(others)}" if others else "")
    )


def _why_not(description: Description, settings: SoftSettings, student: Student) -> str | None:
    """Why a student cannot learn from a set of maps, complete or not; ``None`` if it can."""
    if description.data != student.data:
        different = [key for key in student.data if description.data.get(key) != student.data[key]]
        return (
            f"their teachers saw data preprocessed in another way ({', '.join(different)}). Make new ones: "
            f"`{student.command}`."
        )
    if (description.heads, description.has_regions) != (student.heads, student.has_regions):
        return (
            f"they are of {', '.join(description.heads)}, and the student learns {', '.join(student.heads)}. Make new ones: "
            f"`{student.command}`."
        )
    # a student of all cases validates on what it learns from anyway
    leaks = {} if student.fold == "all" or settings.allow_leak else leaked_cases(description, student.validation)
    if leaks:
        folds = ", ".join(f"fold {fold} on {count}" for fold, count in leaks.items())
        return (
            f"their teachers were trained on validation cases of fold {student.fold} ({folds} of {len(student.validation)}), so "
            f"validation would look better than it is. Take maps of the teacher of this fold: `{student.command}`. Or say that "
            f"this is meant: --set objectives.soft.allow_leak=true."
        )
    return None


def _check_complete(folder: Path, description: Description, student: Student) -> None:
    channels = len(description.heads)
    missing = [case for case in student.training if not map_path(folder, case).is_file()]
    stale = [
        case
        for case in student.training
        if case not in missing and not is_whole(folder, case, (channels, *student.shape_of(case)[1:]))
    ]
    for cases, what in (
        (missing, "have no map"),
        (stale, "have a map that cannot be read, or of another shape than the image"),
    ):
        if cases:
            named = ", ".join(cases[:SHOWN]) + (", ..." if len(cases) > SHOWN else "")
            raise DataError(
                f"{len(cases)} of {counted(len(student.training), 'training case')} {what} in {folder}: {named}. "
                f"`{student.command}` "
                f"makes the rest; what is there is kept if it fits."
            )
