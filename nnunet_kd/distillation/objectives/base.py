"""The interface of a distillation objective.

An objective is a module. It is told once, at construction, what the two networks look like; in every training step it
receives what both computed and returns named loss terms, the sum of which is its loss. What it learns are its parameters.
Weights and schedules are not its business: :class:`nnunet_kd.distillation.weighting.Distillation` weighs, adds and logs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from nnunet_kd.distillation.frozen_teacher import FrozenTeacher
from nnunet_kd.distillation.settings_model import Schedule, SettingsModel
from nnunet_kd.distillation.targets import Targets


class ObjectiveSettings(SettingsModel):
    """Settings that every objective has; each adds its own."""

    weight: float = Field(1.0, ge=0, description="factor of the objective in the total loss")
    schedule: Schedule = Field(default=Schedule(), description="the weight's course over epochs")
    learns_at_full_weight: bool = Field(
        False,
        description="true: weight and schedule hold for the student only. What the objective itself learns, projections for "
        "example, follows its loss as if the weight were 1. No gain for the segmentation is shown yet "
        "(docs/explanation-short-trainings.md)",
    )
    every: int = Field(
        1, ge=1, description="the objective counts in every so many iterations, and its teacher runs in those alone"
    )

    def full_weight(self) -> float:
        """The weight at the height of the schedule."""
        return self.weight

    @property
    def periods(self) -> tuple[int, ...]:
        """In every how many iterations the objective does something, for each thing that it does."""
        return (self.every,)

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher's network is needed in training."""
        return True

    @property
    def compares_stages(self) -> bool:
        """Whether the teacher's features are needed, stage by stage, so that its stages must be as large as the student's."""
        return True

    @property
    def reads_maps(self) -> bool:
        """Whether soft labels are read from disk."""
        return False


@dataclass(frozen=True)
class NetworkPair:
    """What an objective may know about teacher and student before training.

    Attributes:
        teacher_channels, student_channels: channels of every encoder stage, finest first.
        dimensions: number of spatial axes, 2 or 3.
        image_channels: channels of the input.
        heads: channels of the logits.
        has_regions: whether heads are independent (sigmoid) instead of exclusive (softmax).
        batch_dice: whether nnU-Net's Dice is one over all samples.
        gather: adds up such a Dice's sums over processes, with gradients; ``None``: there is one process.
    """

    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    dimensions: int
    image_channels: int = 1
    heads: int = 2
    has_regions: bool = False
    batch_dice: bool = False
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class StepOutputs:
    """What one training step offers to objectives.

    Attributes:
        image: the networks' input ``(B, C, *spatial)``.
        student_features: one ``(B, Cs_i, *spatial_i)`` per encoder stage, finest first.
        student_logits: ``(B, K, *spatial)`` at full resolution.
        teacher_features: as the student's; empty unless an objective needs them. They carry no gradient.
        teacher_logits: as the student's, float32, without gradient; ``None`` unless an objective needs them.
        targets: the reference at full resolution.
        teacher: the network that ``teacher_features`` come from, for objectives that run it themselves; ``None`` if none of the
            objectives in use needs one.
        task_loss: nnU-Net's loss of logits at full resolution against this batch's reference.
        epoch, iteration: counted from 0, the latter since the start of training.
        seed: of this iteration's random numbers; depends on run, iteration and process, so that a run that is stopped and
            resumed draws what it would have drawn.
        all_logits: the student's at every deep-supervision scale, the finest first.
        scale_weights: of these in nnU-Net's loss.
        soft_labels: the loader's maps of this batch, see :mod:`nnunet_kd.distillation.soft_labels`; ``None``: it has none.
    """

    image: torch.Tensor
    student_features: list[torch.Tensor]
    student_logits: torch.Tensor
    teacher_features: list[torch.Tensor]
    teacher_logits: torch.Tensor | None
    targets: Targets
    teacher: FrozenTeacher | None
    task_loss: Callable[[torch.Tensor], torch.Tensor]
    epoch: int
    iteration: int
    seed: int = 0
    all_logits: tuple[torch.Tensor, ...] = ()
    scale_weights: tuple[float, ...] = ()
    soft_labels: torch.Tensor | None = None

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for this iteration on the networks' device, so that nothing is copied there; another for every purpose."""
        generator = torch.Generator(device=self.image.device)
        return generator.manual_seed((self.seed * 0x9E3779B1 + zlib.crc32(purpose.encode())) % 2**63)

    def detached(self) -> StepOutputs:
        """The same without the student's graph."""
        features = [feature.detach() for feature in self.student_features]
        scales = tuple(logits.detach() for logits in self.all_logits)
        return replace(self, student_features=features, student_logits=self.student_logits.detach(), all_logits=scales)


class Objective(nn.Module):
    """Base of all objectives. Subclasses set ``Settings`` and implement ``__init__`` and ``forward``.

    Attributes:
        needs_teacher_features, needs_teacher_logits: what of the teacher ``forward`` reads from the step.
        explores: whether :meth:`explore` does something.
        replaces_labels: its weight is taken from the labels' loss.
        reads_labels: what it asks of the student depends on the reference, so that cases without labels cannot have it.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = ObjectiveSettings
    needs_teacher_features: bool = True
    needs_teacher_logits: bool = False
    explores: ClassVar[bool] = False
    replaces_labels: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False

    def __init__(self, settings: ObjectiveSettings, networks: NetworkPair) -> None:
        super().__init__()

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """Named scalar loss terms, float32; the objective's loss is their sum. None yet: an empty dictionary."""
        raise NotImplementedError  # pragma: no cover

    def is_preparing(self) -> bool:
        """Whether :meth:`forward` has no terms yet, because :meth:`explore` must be called some times first."""
        return False

    def compared(self, features: torch.Tensor) -> list[torch.Tensor]:
        """What of a stage's features ``(B, C, *spatial)`` a projection is fitted to, in the same shape: the features themselves.

        Linear and channel by channel, so that it may be taken before or after the projection.
        """
        return [features]

    def explore(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """What the objective trains by itself, after the student's step; returns named values for the log.

        ``step`` is detached from the student, which is therefore out of reach.
        """
        return {}
