"""The interface of a distillation objective.

An objective is a module. It is told once, at construction, what the two networks look like; in every training step it
receives what both computed and returns named loss terms, the sum of which is its loss. Weights and schedules are not its
business: :class:`nnunet_kd.distillation.Distillation` weighs, adds and logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from nnunet_kd.settings_model import Schedule, SettingsModel


class ObjectiveSettings(SettingsModel):
    """Settings that every objective has; each adds its own."""

    weight: float = Field(1.0, ge=0, description="factor of the objective in the total loss")
    schedule: Schedule = Field(default=Schedule(), description="the weight's course over epochs")


@dataclass(frozen=True)
class NetworkPair:
    """What an objective may know about teacher and student before training.

    Attributes:
        teacher_channels, student_channels: channels of every encoder stage, finest first.
        dimensions: number of spatial axes, 2 or 3.
    """

    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    dimensions: int


@dataclass(frozen=True)
class StepOutputs:
    """What one training step offers to objectives.

    Attributes:
        student_features, teacher_features: one ``(B, C_i, *spatial_i)`` per encoder stage, finest first. The teacher's
            are inference tensors: clone them before saving them for a backward pass.
        epoch: the current epoch, counted from 0.
    """

    student_features: list[torch.Tensor]
    teacher_features: list[torch.Tensor]
    epoch: int


class Objective(nn.Module):
    """Base of all objectives. Subclasses set ``Settings`` and implement ``__init__`` and ``forward``."""

    Settings: ClassVar[type[ObjectiveSettings]] = ObjectiveSettings

    def __init__(self, settings: ObjectiveSettings, networks: NetworkPair) -> None:
        super().__init__()

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """Named scalar loss terms, float32; the objective's loss is their sum."""
        raise NotImplementedError  # pragma: no cover
