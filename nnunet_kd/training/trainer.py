"""nnU-Net's trainer with a smaller network whose loss a frozen teacher adds to.

Every hook calls nnU-Net's own first or last and adds to it. The training step itself is nnU-Net's: the student's features
are caught by a hook, and the distillation loss is added where nnU-Net computes its own, so that autocast, gradient scaling
and synchronisation hold for both. Clipped are the student's gradients, of both losses together; those of what objectives
learn are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import nnunet_kd
from nnunet_kd.distillation.frozen_teacher import Teachers
from nnunet_kd.distillation.objectives.base import NetworkPair
from nnunet_kd.distillation.objectives.projection import PROJECTIONS
from nnunet_kd.distillation.saved_state import LEARNED, STATE, learned_names, take_over
from nnunet_kd.distillation.starts.student import TEACHER
from nnunet_kd.distillation.supervision import TeacherSupervision
from nnunet_kd.distillation.teacher import load_teachers, naming_random_start
from nnunet_kd.distillation.weighting import Distillation
from nnunet_kd.errors import NnunetKdError, SettingsError
from nnunet_kd.models.checkpoint import add_learned_parameters, remove_learned_parameters
from nnunet_kd.models.plans import provenance, stage_channels
from nnunet_kd.nnunet.environment import optional_folder
from nnunet_kd.nnunet.training import compile_backend, sum_over_processes
from nnunet_kd.training.begun import Begun, write_settings
from nnunet_kd.training.distributed import check_processes_agree
from nnunet_kd.training.history import LossHistory
from nnunet_kd.training.reduced import ReducedTrainer
from nnunet_kd.training.skipped_steps import nan_unless_finite
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.training.unlabelled import loss_of_labelled

CURVES_FILE = "distillation.png"


class _LossWithDistillation(nn.Module):
    """nnU-Net's loss, followed by whatever the trainer adds to it in training steps."""

    def __init__(self, segmentation: nn.Module, trainer: DistillationTrainer) -> None:
        super().__init__()
        self.segmentation = segmentation
        self._labels, self._add = trainer.labels_loss, trainer.add_distillation

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        return self._add(self._labels(output, target), output, target)


class DistillationTrainer(ReducedTrainer):
    """Trains a reduced network, with the objectives that the settings name.

    Attributes:
        supervision: the teachers and objectives, from the start of training to its end.
        history: mean losses per epoch.
        teacher_mirror_axes: what the training of the teachers that run beside mirrored; ``None``: none runs.
    """

    teacher_mirror_axes: tuple[int, ...] | None = None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, which it inspects
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.history = LossHistory()
        self.supervision: TeacherSupervision | None = None
        self._in_train_step = False
        self._labelled: list[int] | None = None
        self._labels_share = 1.0

    # teacher ----------------------------------------------------------------------------------------------------------

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """nnU-Net's own, but mirrored is what the settings say, else what the teachers' training mirrored.

        A teacher whose training did not mirror an axis may tell left from right, and is wrong on mirrored images.
        """
        rotation, dummy_2d, patch, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        teacher_axes = self.teacher_mirror_axes
        if self.settings.mirror_axes is not None:
            axes = tuple(self.settings.mirror_axes)
        elif teacher_axes is not None:
            axes = teacher_axes
        if teacher_axes is not None and (foreign := sorted(set(axes) - set(teacher_axes))):
            listed = ", ".join(map(str, foreign))
            self.print_to_log_file(f"WARNING: mirrored axes that the teacher's training did not mirror: {listed}")
        self.print_to_log_file(f"Mirrored axes: {', '.join(map(str, axes)) or 'none'}")
        self.inference_allowed_mirroring_axes = axes or None  # nnU-Net's prediction takes no empty ones
        return rotation, dummy_2d, patch, self.inference_allowed_mirroring_axes

    # start ------------------------------------------------------------------------------------------------------------

    def prepare_distillation(self) -> None:
        """Check the teachers, then build the networks and what objectives learn; needs no training data."""
        objectives = self.settings.active_objectives()
        if self.objectives is None and not objectives:
            raise SettingsError(
                f"{type(self).__name__} takes its objectives from the settings, which name none. Name at least one, for example "
                f"--recipe dcd --set objectives.logits.weight=1, or take another trainer."
            )
        new = self.is_new()
        self.check_start(new)
        if self.begun is None and not self.restored:
            self.begun = Begun(pretrained=not new and self.restored_from is None)
        self.choose_soft_labels()
        teachers = None
        if self.settings.runs_teacher() or (new and self.settings.start == TEACHER):
            with naming_random_start(not self.settings.runs_teacher() and not self.requires_start):
                teachers, self.settings = load_teachers(
                    self.settings,
                    optional_folder("nnUNet_results"),
                    self.plans_manager.plans,
                    self.configuration_name,
                    self.fold,
                    self.dataset_json,
                    self.device,
                    compile_backend(self),
                    self.print_to_log_file,
                )
            # before the first patch is drawn, for the start
            self.teacher_mirror_axes = teachers.mirror_axes if self.settings.runs_teacher() else None
        if not self.was_initialized:
            self.initialize()
        self.take_start(new, teachers)
        self.prepare_average()
        if objectives:
            self._start_distillation(teachers if self.settings.runs_teacher() else None)

    def on_train_start(self) -> None:
        """Everything that can be wrong with the teacher comes to light before nnU-Net starts its loaders."""
        # before anything that one process waits for in another
        check_processes_agree(self.current_epoch, self.restored_from is not None)
        self.refuse_to_spoil_folds()
        try:
            self.prepare_distillation()
        except NnunetKdError:
            self.remove_log()
            raise
        super().on_train_start()
        if self.local_rank == 0 and not self.disable_checkpointing:  # else a trial, which nobody can go on with
            write_settings(Path(self.output_folder), self.settings, type(self).__name__, self.begun)
        reduction = provenance(self.plans_manager.plans, self.configuration_name)
        self.print_to_log_file(f"Student: {reduction}\nSettings: {self.settings.as_dict()}")

    def _start_distillation(self, teachers: Teachers | None) -> None:
        batch_dice = bool(self.configuration_manager.batch_dice)
        student_channels = stage_channels(self.plans_manager.plans, self.configuration_name)
        comparable = teachers is not None and len(teachers.channels) == len(student_channels)
        networks = NetworkPair(
            # objectives on logits do not look at them; others are refused below
            teacher_channels=teachers.channels if teachers is not None and comparable else student_channels,
            student_channels=student_channels,
            dimensions=len(self.configuration_manager.patch_size),
            image_channels=self.num_input_channels,
            heads=self.label_manager.num_segmentation_heads,
            has_regions=self.label_manager.has_regions,
            batch_dice=batch_dice,
            gather=sum_over_processes if batch_dice and self.is_ddp else None,
        )
        distillation = Distillation(self.settings.active_objectives(), networks).to(self.device)
        objectives = distillation.all_objectives().values()
        for member in () if teachers is None else teachers.members:
            if any(objective.explores for objective in objectives):
                member.check_decodes(len(student_channels))
            elif any(objective.needs_teacher_features for objective in objectives):
                member.check_features(len(student_channels))
        new, momentum = distillation.all_objectives(), None
        if STATE in self.restored:
            taken = take_over(distillation, self.restored, networks)
            momentum = taken.optimizer
            new = {name: objective for name, objective in new.items() if PROJECTIONS in taken.anew.get(name, ())}
            for line in taken.describe():
                self.print_to_log_file(line)
        if teachers is not None:
            self.fit_projections(new, teachers)
        learned = [parameter for parameter in distillation.parameters() if parameter.requires_grad]
        if learned:
            add_learned_parameters(self.optimizer, learned, momentum)
        # before the network is first called: compiled code would not see a later hook
        self.supervision = TeacherSupervision(
            self.network,
            teachers,
            distillation,
            self.loss.segmentation,
            self.label_manager,
            self.settings.seed,
        )
        if self.is_ddp:
            self.supervision.synchronise(self.device)

    # step -------------------------------------------------------------------------------------------------------------

    def _build_loss(self) -> nn.Module:
        return _LossWithDistillation(super()._build_loss(), self)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The step, with the student's features caught while any objective counts."""
        if self.supervision is not None:
            iteration = self.current_epoch * self.num_iterations_per_epoch + self._steps_in_epoch
            maps = batch.get(KEY)
            maps = None if maps is None else maps.to(self.device, non_blocking=True)
            self.supervision.start_step(self.current_epoch, iteration, soft_labels=maps)
        self._in_train_step, self._labelled, self.terms = True, self.labelled_samples(batch), {}
        self._labels_share = self.labels_share(batch)
        explored: dict[str, torch.Tensor] = {}
        try:
            result = super().train_step(batch)
            if self.supervision is not None:
                with self.stopped_when_memory_is_full():
                    explored = self.supervision.explore()
        finally:
            self._in_train_step, self._labelled, self._labels_share = False, None, 1.0
            terms, self.terms = self.terms, {}
            if self.supervision is not None:
                self.supervision.finish_step()
        if not result["skipped"]:
            self.history.add({**terms, **explored})
        return result

    def labels_loss(self, output: Any, target: Any) -> torch.Tensor:
        """nnU-Net's own loss; in a training step of the samples that have labels, see :mod:`nnunet_kd.training.unlabelled`."""
        return self._labels_share * loss_of_labelled(self.loss.segmentation, output, target, self._labelled)

    def add_distillation(self, segmentation: torch.Tensor, output: Any, target: Any) -> torch.Tensor:
        """The training step's total loss; outside of training steps, the segmentation loss itself."""
        if not self._in_train_step:
            return segmentation
        self.terms = {"segmentation": segmentation.detach()}
        supervised = None if self.supervision is None else self.supervision.loss(output, target)
        if supervised is None:
            return nan_unless_finite(segmentation)
        loss, terms = supervised
        self.terms.update(terms)
        assert self.supervision is not None
        share = self.supervision.labels_weight()
        # nothing times 0: a label's loss that is not finite would still spoil the step
        labels = segmentation * share if 0 < share < 1 else (segmentation if share else 0)
        return nan_unless_finite(labels + loss)

    def memory_users(self) -> list[str]:
        """Also the objectives, and DCD's levels."""
        active = self.settings.active_objectives()
        levels = getattr(active.get("dcd"), "levels", None)
        own = [f"objectives (now {', '.join(active)})"] if active else []
        return own + ([f"objectives.dcd.levels (now {levels})"] if levels is not None else []) + super().memory_users()

    # epoch ------------------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Also tell the epoch's losses apart: log file, and loggers such as W&B."""
        super().on_train_epoch_end(train_outputs)
        means = self.history.close_epoch(self.current_epoch)
        for line in self.history.describe(means):
            self.print_to_log_file(line)
        if self.local_rank == 0:
            for logger in self.logger.loggers:
                for name, value in means.items():
                    logger.log(f"kd/{name}", value, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Also draw the losses."""
        if self.local_rank == 0:
            self.history.draw(Path(self.output_folder) / CURVES_FILE)
        super().on_epoch_end()

    def on_train_end(self) -> None:
        """Also let go of everything that only training needed."""
        super().on_train_end()
        remove_learned_parameters(self.optimizer)  # --val_best loads an optimizer's state that has none
        if self.supervision is not None:
            self.supervision.remove()
        self.supervision = None

    # checkpoint -------------------------------------------------------------------------------------------------------

    def checkpoint_entry(self) -> dict[str, Any]:
        """Also settings, history and what distillation learned."""
        entry: dict[str, Any] = {
            **super().checkpoint_entry(),
            "version": nnunet_kd.__version__,
            "settings": self.settings.as_dict(),
            "history": self.history.epochs,
        }
        if self.supervision is not None:
            distillation = self.supervision.distillation
            entry |= {STATE: distillation.state_dict(), LEARNED: learned_names(distillation)}
        return entry

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | Path) -> None:
        """Also the history."""
        super().load_checkpoint(checkpoint)
        self.history = LossHistory(self.restored.get("history", [])[: self.current_epoch])
