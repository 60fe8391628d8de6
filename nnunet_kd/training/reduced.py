"""nnU-Net's trainer with the smaller network and the hyperparameters that a recipe and the user's settings ask for."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format, convert_conv3d_weight_memory_format

from nnunet_kd.distillation.settings import Settings, validate_settings
from nnunet_kd.distillation.settings_sources import (
    SET_VARIABLE,
    SETTINGS_FILE,
    is_asked_for,
    resolve_settings,
    saved_settings,
)
from nnunet_kd.distillation.teacher_source import locate_teacher
from nnunet_kd.distillation.teacher_source import previous_stage_segmentations as segmentations_of_teacher
from nnunet_kd.errors import PlanError
from nnunet_kd.models.plans import planned_reduction, reduce_plans
from nnunet_kd.nnunet.environment import optional_folder
from nnunet_kd.training.begun import read_begun
from nnunet_kd.training.shared_folder import refuse_other_networks
from nnunet_kd.training.soft_labels import SoftLabelTrainer


class ReducedTrainer(SoftLabelTrainer):
    """Resolves the settings, divides the plan's channels before nnU-Net sees it, and seeds.

    Attributes:
        recipe: the trainer's own recipe, the lowest layer of its settings.
        objectives: the objectives it takes from the settings; ``None``: any.
        starts_at_random: whether settings files leave its start alone; see :func:`resolve_settings`.
        settings: the run's resolved settings.
    """

    recipe: ClassVar[str] = "student"
    starts_at_random: ClassVar[bool] = False
    objectives: ClassVar[tuple[str, ...] | None] = ()

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, which it inspects
    ) -> None:
        continued = plans.pop("continue_training", False)
        self.settings = self._resolve_settings(plans, configuration, fold, continued)
        plans = reduce_plans(plans, self.settings.reduction, required=configuration)
        # nnU-Net takes this key out of the dictionary that it also stores
        plans["continue_training"] = continued
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.settings.epochs is not None:
            self.num_epochs = self.settings.epochs
        if self.settings.iterations_per_epoch is not None:
            self.num_iterations_per_epoch = self.settings.iterations_per_epoch
        if self.settings.validation_iterations is not None:
            self.num_val_iterations_per_epoch = self.settings.validation_iterations
        if self.settings.learning_rate is not None:
            self.initial_lr = self.settings.learning_rate
        self.settings.check_axes(configuration, len(self.configuration_manager.patch_size))

    def _resolve_settings(
        self, plans: dict[str, Any], configuration: str, fold: int | str, continued: bool
    ) -> Settings:
        preprocessed, results = optional_folder("nnUNet_preprocessed"), optional_folder("nnUNet_results")
        dataset_folder = None if preprocessed is None else preprocessed / plans["dataset_name"]
        saved = None
        if continued and results is not None:
            model = f"{type(self).__name__}__{plans['plans_name']}__{configuration}"
            folder = results / plans["dataset_name"] / model / f"fold_{fold}"
            saved, self.begun = saved_settings(folder / SETTINGS_FILE), read_begun(folder / SETTINGS_FILE)
        return self.resolve(dataset_folder, saved, planned=planned_reduction(plans, configuration))

    @classmethod
    def resolve(
        cls,
        dataset_folder: Path | None = None,
        saved: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        planned: float | None = None,
    ) -> Settings:
        """The settings of a training with this trainer; see :func:`~nnunet_kd.distillation.settings_sources.resolve_settings`."""
        return resolve_settings(
            cls.recipe, cls.objectives, dataset_folder, saved, environment, cls.starts_at_random, planned
        )

    def prepare_for(self, entry: Mapping[str, Any]) -> None:
        """Of a cascade: ``--val``, which knows no settings of the training, takes the first stage of its teacher."""
        trained: dict[str, Any] = entry.get("settings") or {}
        only_set = {SET_VARIABLE: os.environ.get(SET_VARIABLE, "")}
        if self.is_cascaded and "teacher" in trained and not is_asked_for("teacher", environment=only_set):
            known = validate_settings({"teacher": trained["teacher"]}, "the checkpoint's settings").teacher
            if all(
                one.path is None or Path(one.path).exists() for one in known
            ):  # else it has moved, and is looked for
                self.settings = self.settings.model_copy(update={"teacher": known})

    def initialize(self) -> None:
        """nnU-Net's own, after seeding; a cascade's previous segmentations come from the teacher's trainer."""
        if self.settings.seed is not None:
            # the same weights on every rank, other patches
            torch.manual_seed(self.settings.seed)
            np.random.seed((self.settings.seed + self.local_rank) % 2**32)  # noqa: NPY002  what nnU-Net's loaders draw from
            random.seed(self.settings.seed + self.local_rank)
        if self.is_cascaded:
            self.folder_with_segs_from_previous_stage = str(self.previous_stage_segmentations())
        super().initialize()
        if self.device.type == "cpu" and not self.is_ddp:
            # a student's few channels do not fill oneDNN's blocked layouts (docs/reference-performance.md);
            # DDP has seen the old layout
            convert_conv2d_weight_memory_format(self.network, torch.channels_last)
            convert_conv3d_weight_memory_format(self.network, torch.channels_last_3d)
        if self.settings.seed is not None and self.local_rank > 0:
            # nnU-Net's augmentation draws from this one too, and must differ between processes
            torch.manual_seed(self.settings.seed + self.local_rank)

    def previous_stage_segmentations(self) -> Path:
        """Of a cascade: the folder with the first stage's segmentations, made by the teacher's trainer.

        Raises:
            TeacherError: see :func:`~nnunet_kd.distillation.teacher_source.previous_stage_segmentations`.
        """
        wanted, plans = self.settings.teachers()[0], self.plans_manager.plans
        results = optional_folder("nnUNet_results")
        with tempfile.TemporaryDirectory(prefix="nnunet_kd_teacher_") as unpacked:
            source = locate_teacher(wanted, results, plans, self.configuration_name, self.fold, Path(unpacked))
        return segmentations_of_teacher(source, self.configuration_manager.previous_stage_name, self.configuration_name)

    def refuse_to_spoil_folds(self) -> None:
        """Raise a PlanError, and leave no log behind, if the folder holds folds of another network that shall stay."""
        try:
            refuse_other_networks(
                Path(self.output_folder_base),
                str(self.fold),
                self.plans_manager.plans,
                self.configuration_name,
                self.dataset_json,
                saves=not self.disable_checkpointing,
            )
        except PlanError:
            self.remove_log()
            raise
