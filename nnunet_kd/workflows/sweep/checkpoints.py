"""What a sweep's students learn from and start from: teachers, and weights instead of random ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.frozen_teacher import shared_axes
from nnunet_kd.distillation.objectives.soft import SoftSettings
from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.soft_labels.choice import choose_maps, student_of
from nnunet_kd.distillation.starts.student import pin_start
from nnunet_kd.distillation.teacher import found_teacher, load_teacher
from nnunet_kd.errors import CheckpointError, SettingsError, TeacherError
from nnunet_kd.evaluation.runs import fold_cases, read_splits
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.models.plans import build_meta_network, inputs_and_heads
from nnunet_kd.nnunet.checkpoints import FINAL, WEIGHTS
from nnunet_kd.nnunet.datasets import preprocessed_cases
from nnunet_kd.nnunet.environment import required_folder
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.sweep.description import SweepDescription

_NOT_TAKEN_OVER = ".seg_layers."
"""nnU-Net's ``load_pretrained_weights`` leaves these as they are."""


@dataclass(frozen=True)
class PretrainedWeights:
    """A checkpoint for nnU-Net's ``-pretrained_weights``.

    Attributes:
        path: absolute.
        sha256: of the file; what the weights are known by.
    """

    path: Path
    sha256: str


def find_pretrained(
    given: str, student_plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any], fold: int | str
) -> PretrainedWeights:
    """The checkpoint that students of a fold start from, which fits them.

    Args:
        given: a checkpoint, for all folds; or a model folder, whose ``fold_X/checkpoint_final.pth`` is taken for fold X, so that
            no student starts from weights that have seen its validation cases.
        student_plans, configuration, dataset_json: the students'.
        fold: theirs.

    Raises:
        SettingsError: it is not there, cannot be read, or is of another network.
    """
    path = Path(os.path.abspath(os.path.expanduser(given)))
    if path.is_dir():
        path = path / f"fold_{fold}" / FINAL
    if not path.is_file():
        raise SettingsError(
            f"pretrained_weights: there is no {path}. Give a checkpoint of a student of the same plan and reduction, or a model "
            f"folder that has one for every fold of the sweep."
        )
    try:
        weights = read_checkpoint(path, in_memory=False).get(WEIGHTS)
    except CheckpointError as error:
        raise SettingsError(f"pretrained_weights: {error}") from error
    if not isinstance(weights, Mapping):
        raise SettingsError(f"pretrained_weights: {path} is not nnU-Net's, it has no network_weights.")
    inputs, heads = inputs_and_heads(student_plans, configuration, dataset_json)
    wanted = build_meta_network(student_plans, configuration, inputs, heads).state_dict()
    for name, value in wanted.items():
        if _NOT_TAKEN_OVER in name:
            continue
        there = tuple(weights[name].shape) if name in weights else None
        if there != tuple(value.shape):
            raise SettingsError(
                f"pretrained_weights: {path} is of another network. {name} is {tuple(value.shape)} in the student and "
                f"{'missing' if there is None else there} there. Plan, configuration and reduction must be the same."
            )
    return PretrainedWeights(path, sha256(path))


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
        self._soft_labels: dict[str, SoftSettings] = {}
        self._students: dict[str, tuple[str, str]] = {}

    def teacher(self, wanted: TeacherSettings, student: Mapping[str, Any], fold: int | str) -> TeacherSettings:
        """Which checkpoint is meant for a student's fold.

        Raises:
            TeacherError: there is none, it does not fit, or it cannot be loaded.
        """
        return self._load(wanted, student, fold)[0]

    def mirror_axes(
        self, wanted: Sequence[TeacherSettings], student: Mapping[str, Any], fold: int | str
    ) -> tuple[int, ...] | None:
        """What a student without a teacher is to mirror, so that it can be compared with distilled ones.

        Returns:
            Spatial axes, from 0, that the training of every teacher mirrored that distilled students of this fold would have;
            ``None`` if there is none.
        """
        try:
            return shared_axes([self._load(one, student, fold)[1] for one in wanted])
        except TeacherError:  # whoever needs one says so
            return None

    def _load(
        self, wanted: TeacherSettings, student: Mapping[str, Any], fold: int | str
    ) -> tuple[TeacherSettings, tuple[int, ...]]:
        configuration = self._description.configuration
        key = f"{fold} {wanted.model_dump_json()}"
        if key not in self._teachers:
            results = required_folder("nnUNet_results")
            found = found_teacher(wanted, results, student, configuration, fold, self._dataset_json)
            with found as (source, exact):
                loaded = load_teacher(source, torch.device("cpu"), trusted=wanted.trusted)
                self._teachers[key] = (exact, loaded.mirror_axes)
        return self._teachers[key]

    def soft_labels(self, wanted: SoftSettings, student: Mapping[str, Any], fold: int | str) -> SoftSettings:
        """Which maps are meant for a student's fold.

        Raises:
            DataError: see :func:`~nnunet_kd.distillation.soft_labels.choice.choose_maps`; or the dataset has no splits yet.
        """
        key = f"{fold} {wanted.model_dump_json()}"
        if key not in self._soft_labels:
            configuration = self._description.configuration
            identifier = PlansManager(dict(student)).get_configuration(configuration).data_identifier
            folder = required_folder("nnUNet_preprocessed") / str(student["dataset_name"])
            if fold == "all":
                training = validation = list(preprocessed_cases(folder / identifier).identifiers)
            else:
                splits = read_splits(folder / "splits_final.json")
                training, validation = (sorted(fold_cases(splits, str(fold), part)) for part in ("train", "val"))
            fitting = student_of(
                folder / identifier, student, configuration, self._dataset_json, fold, training, validation
            )
            self._soft_labels[key] = choose_maps(wanted, fitting)[0]
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
            SettingsError: see :func:`find_pretrained`.
        """
        given, configuration = self._description.pretrained_weights, self._description.configuration
        if given is None:
            return None
        key = f"{fold} {json.dumps(student['configurations'])}"
        if key not in self._starts:
            self._starts[key] = find_pretrained(given, student, configuration, self._dataset_json, fold)
        return self._starts[key]
