"""Distillation of class probabilities (Hinton et al.)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs


class LogitsSettings(ObjectiveSettings):
    """Weight and temperature are ours."""

    weight: float = Field(1.0, ge=0, description="factor of the objective in the total loss")
    temperature: float = Field(2.0, gt=0, description="tau; larger values soften both distributions")


class Logits(Objective):
    """``tau^2 KL(p_t || p_s)`` per voxel, ``p = softmax(z / tau)`` (Hinton et al., 2015, Sect. 2 and 2.1).

    The factor ``tau^2`` keeps the size of the gradient as ``tau`` grows. The divergence sums over classes and is averaged over
    voxels that are not ignored. With regions every head is a Bernoulli variable of its own, and theirs are summed (ours).
    Term: ``kl``.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = LogitsSettings
    needs_teacher_features = False
    needs_teacher_logits = True

    def __init__(self, settings: LogitsSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self._temperature = settings.temperature
        self._has_regions = networks.has_regions

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """The divergence as one scalar."""
        assert step.teacher_logits is not None
        student, teacher = step.student_logits / self._temperature, step.teacher_logits / self._temperature
        divergence = _bernoulli(teacher, student) if self._has_regions else _categorical(teacher, student)
        if step.targets.valid is None:
            mean = divergence.mean()
        else:
            valid = step.targets.valid
            mean = divergence.where(valid, 0.0).sum() / valid.sum().clamp(min=1)
        return {"kl": self._temperature**2 * mean}


def _categorical(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """``KL(softmax(teacher) || softmax(student))`` over channels, ``(B, 1, *spatial)``."""
    log_teacher = functional.log_softmax(teacher, dim=1)
    difference = log_teacher - functional.log_softmax(student, dim=1)
    return (log_teacher.exp() * difference).sum(1, keepdim=True)


def _bernoulli(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """``KL`` of one Bernoulli variable per channel, summed over channels, ``(B, 1, *spatial)``."""
    inside = functional.logsigmoid(teacher)
    outside = functional.logsigmoid(-teacher)
    divergence = inside.exp() * (inside - functional.logsigmoid(student))
    divergence = divergence + outside.exp() * (outside - functional.logsigmoid(-student))
    return divergence.sum(1, keepdim=True)
