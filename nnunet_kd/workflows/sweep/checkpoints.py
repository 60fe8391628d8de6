"""What a sweep's students learn from and start from: teachers, and weights instead of random ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.frozen_teacher import shared_axes
from nnunet_kd.distillation.objectives.soft import SoftSettings
from nnunet_kd.distillation.settings import Settings, TeacherSettings
from nnunet_kd.distillation.soft_labels.choice import ChosenMaps, choose_maps
from nnunet_kd.distillation.soft_labels.student import student_of, unlabelled_cases_of
from nnunet_kd.distillation.starts.pretrained import PretrainedWeights, find_pretrained
from nnunet_kd.distillation.starts.student import pin_start
from nnunet_kd.distillation.teacher import found_teacher, load_teacher
from nnunet_kd.errors import TeacherError
from nnunet_kd.evaluation.runs import fold_cases, read_splits
from nnunet_kd.nnunet.datasets import preprocessed_cases
from nnunet_kd.nnunet.environment import required_folder
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.workflows.sweep.description import SweepDescription


class SweepCheckpoints:
    """Finds, loads and hashes every teacher and every start once, however many runs have it.

    Args:
        description: the sweep's.
        dataset_json: the students'.
    """

    def __init__(self, description: SweepDescription, dataset_json: Mapping[str, Any]) -> None:
        self._description = description
        self._dataset_json = dataset_json
        self._teachers: dict[str, tuple[TeacherSettings, tuple[int, ...]]] = {}
        self._starts: dict[str, PretrainedWeights] = {}
        self._soft_labels: dict[str, ChosenMaps] = {}
        self._students: dict[str, tuple[str, str]] = {}

    def teacher(
        self, wanted: TeacherSettings, student: Mapping[str, Any], fold: int | str, stages: bool
    ) -> TeacherSettings:
        """Which checkpoint is meant for a student's fold; ``stages``: see :func:`~.teacher.check_teacher`.

        Raises:
            TeacherError: there is none, it does not fit, or it cannot be loaded.
        """
        return self._load(wanted, student, fold, stages)[0]

    def mirror_axes(
        self, wanted: Sequence[TeacherSettings], student: Mapping[str, Any], fold: int | str
    ) -> tuple[int, ...] | None:
        """What a student without a teacher is to mirror, so that it can be compared with distilled ones.

        Returns:
            Spatial axes, from 0, that the training of every teacher mirrored that distilled students of this fold would have;
            ``None`` if there is none.
        """
        try:
            return shared_axes([self._load(one, student, fold, stages=False)[1] for one in wanted])
        except TeacherError:  # whoever needs one says so
            return None

    def _load(
        self, wanted: TeacherSettings, student: Mapping[str, Any], fold: int | str, stages: bool
    ) -> tuple[TeacherSettings, tuple[int, ...]]:
        configuration = self._description.configuration
        key = f"{fold} {stages} {wanted.model_dump_json()}"
        if key not in self._teachers:
            results = required_folder("nnUNet_results")
            found = found_teacher(wanted, results, student, configuration, fold, self._dataset_json, stages)
            with found as teacher:
                loaded = load_teacher(teacher.source, torch.device("cpu"), trusted=wanted.trusted)
                self._teachers[key] = (teacher.settings, loaded.mirror_axes)
        return self._teachers[key]

    def soft_labels(
        self, wanted: SoftSettings, settings: Settings, student: Mapping[str, Any], fold: int | str
    ) -> ChosenMaps:
        """Which maps are meant for a student's fold.

        Args:
            wanted: the run's objective.
            settings: the run's, which say what its teachers are.
            student: its plan.
            fold: its own.

        Raises:
            DataError: see :func:`~nnunet_kd.distillation.soft_labels.choice.choose_maps`; or the dataset has no splits yet.
        """
        teachers = [one.model_dump_json() for one in settings.teachers()]
        key = f"{fold} {wanted.model_dump_json()} {settings.start} {settings.runs_teacher()} {teachers}"
        if key not in self._soft_labels:
            configuration = self._description.configuration
            identifier = PlansManager(dict(student)).get_configuration(configuration).data_identifier
            cases = required_folder("nnUNet_preprocessed") / str(student["dataset_name"]) / identifier
            if fold == "all":
                training = validation = list(preprocessed_cases(cases).identifiers)
            else:
                splits = read_splits(cases.parent / SPLITS_FILE)
                training, validation = (sorted(fold_cases(splits, str(fold), part)) for part in ("train", "val"))
            unlabelled = unlabelled_cases_of(cases, student, configuration, [*training, *validation])
            fitting = student_of(
                cases, student, configuration, self._dataset_json, fold, training, validation, unlabelled, settings,
                required_folder("nnUNet_results"), self._description.device,
            )  # fmt: skip
            self._soft_labels[key] = choose_maps(wanted, fitting)
        return self._soft_labels[key]

    def student(self, start: str, fold: int | str) -> tuple[str, str]:
        """Path and hash of the student that the setting ``start`` names, see :func:`~.starts.student.pin_start`."""
        key = f"{fold} {start}"
        if key not in self._students:
            self._students[key] = pin_start(start, fold)
        return self._students[key]

    def start(self, student: Mapping[str, Any], fold: int | str) -> PretrainedWeights | None:
        """What a student of a fold starts from; ``None``: random weights.

        Raises:
            SettingsError: see :func:`~.starts.pretrained.find_pretrained`.
        """
        given, configuration = self._description.pretrained_weights, self._description.configuration
        if given is None:
            return None
        key = f"{fold} {json.dumps(student['configurations'])}"
        if key not in self._starts:
            self._starts[key] = find_pretrained(given, student, configuration, self._dataset_json, fold)
        return self._starts[key]
