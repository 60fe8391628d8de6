"""Distillation of class probabilities (Hinton et al.)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.errors import SettingsError
from nnunet_kd.losses.logits import MOST_REGIONS, LogitsLoss


class LogitsSettings(ObjectiveSettings):
    """Weight and temperature are ours."""

    weight: float = Field(1.0, ge=0, description="factor of the objective in the total loss")
    temperature: float = Field(2.0, gt=0, description="tau; larger values soften both distributions")
    balance: Literal["voxels", "classes"] = Field(
        "voxels",
        description="voxels: mean over voxels, as published; classes: mean within each class of the teacher's prediction, then "
        "over the classes that it predicts (ours)",
    )

    @property
    def compares_stages(self) -> bool:
        """Logits alone are compared."""
        return False


class Logits(Objective):
    """``tau^2 KL(p_t || p_s)`` per voxel, ``p = softmax(z / tau)`` (Hinton et al., 2015, Sect. 2 and 2.1).

    The factor ``tau^2`` keeps the size of the gradient as ``tau`` grows. The divergence sums over classes and is averaged over
    voxels that are not ignored. With regions every head is a Bernoulli variable of its own, and theirs are summed (ours).
    Term: ``kl``.

    Raises:
        SettingsError: ``balance: classes`` with more regions than it takes.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = LogitsSettings
    needs_teacher_features = False
    needs_teacher_logits = True

    def __init__(self, settings: LogitsSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        if settings.balance == "classes" and networks.has_regions and networks.heads > MOST_REGIONS:
            raise SettingsError(
                f"objectives.logits.balance=classes takes up to {MOST_REGIONS} regions, and this dataset has {networks.heads}. "
                f"Set objectives.logits.balance=voxels."
            )
        self.loss = LogitsLoss(settings.temperature, independent=networks.has_regions, balance=settings.balance)

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """The divergence as one scalar."""
        assert step.teacher_logits is not None
        return {"kl": self.loss(step.student_logits, step.teacher_logits, step.targets.valid)}
