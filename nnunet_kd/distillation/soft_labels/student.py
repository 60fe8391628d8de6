"""What the maps of a student must fit, and where its maps and its cases without labels lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.settings import Settings
from nnunet_kd.distillation.soft_labels.command import SoftenCommand
from nnunet_kd.distillation.soft_labels.description import FOLDER, Description, data_of, leaks_told
from nnunet_kd.distillation.soft_labels.images import PreprocessedImage
from nnunet_kd.distillation.soft_labels.teachers import RunTeacher, StudentTeachers
from nnunet_kd.nnunet.datasets import case_names, preprocessed_cases


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
        image_of: a training case's.
        teachers: where they are.
        used: those that its training loads or its settings name.
        own_command: makes maps of these.
    """

    parent: Path
    data: dict[str, Any]
    heads: list[str]
    has_regions: bool
    training: Sequence[str]
    validation: Sequence[str]
    fold: int | str
    image_of: Callable[[str], PreprocessedImage]
    teachers: StudentTeachers
    used: Callable[[], Sequence[RunTeacher]]
    own_command: Callable[[], SoftenCommand]

    def command_of(self, description: Description) -> SoftenCommand:
        """What makes the missing maps of a set."""
        leaking = leaks_told(description, self.fold, self.validation)
        return replace(self.own_command().of_set(description, self.teachers), allow_leak=bool(leaking))


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


def unlabelled_cases_of(
    cases: Path, plans: Mapping[str, Any], configuration: str, labelled: Collection[str]
) -> list[str]:
    """Cases without labels that a configuration trains on, by name, sorted; empty for the second stage of a cascade.

    Such a stage reads the images of a configuration that works alone, but no first stage has segmented these cases. A case that
    has got labels since, and is in the fold with them, is left out.

    Args:
        cases: folder of the configuration's preprocessed cases; :func:`unlabelled_folder_of` it need not exist.
        plans, configuration: of the student, or of its teacher: both have the same stages.
        labelled: the fold's cases, to train on and to validate on.
    """
    second_stage = PlansManager(dict(plans)).get_configuration(configuration).previous_stage_name is not None
    return [] if second_stage else sorted({*case_names(unlabelled_folder_of(cases))} - {*labelled})


def student_of(
    cases: Path,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    fold: int | str,
    training: Sequence[str],
    validation: Sequence[str],
    unlabelled: Sequence[str],
    settings: Settings,
    results: Path | None,
    device: str,
) -> Student:
    """What the maps of a student must fit.

    Args:
        cases: folder of its preprocessed cases.
        plans, configuration, dataset_json: the student's.
        fold, training, validation: see :class:`Student`.
        unlabelled: further cases to train on, which lie in :func:`unlabelled_folder_of` that folder.
        settings: the run's, which say what its teachers are.
        results: ``nnUNet_results``; ``None``: not set.
        device: the run's, for instance ``cuda``.
    """
    labels = PlansManager(dict(plans)).get_label_manager(dict(dataset_json))
    parts = [preprocessed_cases(cases, training)] if training else []
    parts += [preprocessed_cases(unlabelled_folder_of(cases), unlabelled)] if unlabelled else []
    images = {str(case): PreprocessedImage(part, str(case)) for part in parts for case in part.identifiers}
    teachers = StudentTeachers(results, plans, configuration, fold)
    plain = SoftenCommand(str(plans["dataset_name"]), configuration, fold, str(plans["plans_name"]), device)
    return Student(
        parent=sets_folder(cases),
        data=data_of(plans, configuration),
        heads=foreground_heads(labels),
        has_regions=labels.has_regions,
        training=[*training, *unlabelled],
        validation=validation,
        fold=fold,
        image_of=images.__getitem__,
        teachers=teachers,
        used=cache(lambda: teachers.of_run(settings)),
        own_command=cache(lambda: plain.of_settings(settings.teachers(), teachers)),
    )
