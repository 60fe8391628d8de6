"""What teachers add to a student's training step."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_kd.distillation.features import EncoderCapture
from nnunet_kd.distillation.frozen_teacher import Teachers
from nnunet_kd.distillation.objectives.base import Objective, StepOutputs
from nnunet_kd.distillation.targets import TargetsOnDemand, read_targets
from nnunet_kd.distillation.turns import Turns
from nnunet_kd.distillation.weighting import Distillation
from nnunet_kd.nnunet.training import loss_of_one_output, scale_weights


class TeacherSupervision:
    """Teachers, objectives and the hook on the student that feeds them, for as long as a training lasts.

    Attributes:
        distillation: the objectives, without anything around them.

    Args:
        network: the student, as nnU-Net calls it; not called yet, because compiled code would not see a later hook.
        teachers: from :func:`nnunet_kd.distillation.teacher.load_teachers`; ``None`` if no objective runs one.
        distillation: on the student's device.
        segmentation: nnU-Net's loss module.
        label_manager: nnU-Net's.
        seed: of the run; ``None``: not seeded, which makes no difference here but is allowed.
    """

    def __init__(
        self,
        network: nn.Module,
        teachers: Teachers | None,
        distillation: Distillation,
        segmentation: nn.Module,
        label_manager: LabelManager,
        seed: int | None,
    ) -> None:
        self.distillation = distillation
        self.teachers = teachers
        self._turns = Turns(1 if teachers is None else len(teachers.members), distillation.feature_periods())
        self._called: Distillation | DistributedDataParallel = distillation
        self._capture = EncoderCapture(network)
        self._task_loss = loss_of_one_output(segmentation)
        self._segmentation = segmentation
        self._labels = label_manager
        self._seed = 0 if seed is None else seed
        self._objectives: Mapping[str, Objective] = {}
        self._epoch = self._iteration = 0
        self._last: StepOutputs | None = None
        self._soft_labels: torch.Tensor | None = None

    def synchronise(self, device: torch.device) -> None:
        """Give every process the first one's parameters, and average gradients from now on."""
        for parameter in self.distillation.parameters():
            dist.broadcast(parameter.data, src=0)
        if any(parameter.requires_grad for parameter in self.distillation.parameters()):
            devices = [device.index] if device.type == "cuda" else None
            # objectives without weight in an epoch leave their parameters unused
            self._called = DistributedDataParallel(self.distillation, device_ids=devices, find_unused_parameters=True)

    def start_step(
        self,
        epoch: int,
        iteration: int,
        objectives: Mapping[str, Objective] | None = None,
        soft_labels: torch.Tensor | None = None,
    ) -> None:
        """Watch the student's next pass if any objective counts.

        Args:
            epoch, iteration: counted from 0.
            objectives: to serve; default: those that count in this iteration.
            soft_labels: the batch's, on the student's device; ``None``: the loader has none.
        """
        self._soft_labels = soft_labels
        self._epoch, self._iteration = epoch, iteration
        self._objectives = self.distillation.active(epoch, iteration) if objectives is None else objectives
        self._capture.enabled = bool(self._objectives)

    def labels_weight(self) -> float:
        """Factor of nnU-Net's own loss in this step."""
        return self.distillation.labels_weight(self._epoch, self._iteration)

    def loss(self, output: Any, target: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]] | None:
        """The weighted distillation loss and its terms; ``None`` if no objective counts now.

        Args:
            output, target: what nnU-Net gives its loss: tensors, or lists of them under deep supervision, finest first.
        """
        if not self._capture.enabled:
            return None
        self._last = self.outputs(output, target)
        loss: tuple[torch.Tensor, dict[str, torch.Tensor]] = self._called(self._last)
        return loss

    def outputs(self, output: Any, target: Any) -> StepOutputs:
        """What student and teacher made of the image that the student saw last; arguments as in :meth:`loss`."""
        objectives = self._objectives.values()
        image = self._capture.image
        assert image is not None
        scales, targets = (value if isinstance(value, (list, tuple)) else [value] for value in (output, target))
        logits, finest = scales[0], targets[0]
        features: list[torch.Tensor] = []
        teacher_logits = None
        turn = self._turns.place(self._iteration)
        if self.teachers is not None:
            features, teacher_logits = self.teachers.outputs(
                image,
                turn,
                features=any(objective.needs_teacher_features for objective in objectives),
                logits=any(objective.needs_teacher_logits for objective in objectives),
            )
        return StepOutputs(
            image=image,
            student_features=self._capture.features,
            student_logits=_full_precision(logits),
            teacher_features=features,
            teacher_logits=teacher_logits,
            targets=TargetsOnDemand(
                lambda: read_targets(finest, self._labels.has_regions, self._labels.ignore_label, logits.shape[1])
            ),
            teacher=None if self.teachers is None else self.teachers.feature_teacher(turn),
            task_loss=lambda own: self._task_loss(own, finest),
            epoch=self._epoch,
            iteration=self._iteration,
            seed=self._step_seed(),
            all_logits=tuple(_full_precision(one) for one in scales),
            scale_weights=scale_weights(self._segmentation) if len(scales) > 1 else (1.0,),
            soft_labels=self._soft_labels,
        )

    def explore(self) -> dict[str, torch.Tensor]:
        """Let objectives explore after the student's step; returns values for the log."""
        return {} if self._last is None else self.distillation.explore(self._last)

    def finish_step(self) -> None:
        """Let go of the step, whatever came of it."""
        self._capture.enabled = False
        self._capture.clear()
        self._last = self._soft_labels = None

    def _step_seed(self) -> int:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return zlib.crc32(f"{self._seed} {self._iteration} {rank}".encode())

    def remove(self) -> None:
        """Detach from the student."""
        self._capture.remove()
        self._last = None


def _full_precision(logits: torch.Tensor) -> torch.Tensor:
    """At least float32: objectives work outside of autocast."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
