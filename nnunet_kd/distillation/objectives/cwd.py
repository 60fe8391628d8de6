"""Channel-wise distillation (CWD): where in space a channel is active."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.projection import ProjectingSettings, each, stage_projections
from nnunet_kd.losses.cwd import CWDLoss


class CWDSettings(ProjectingSettings):
    """Temperature as in the paper."""

    weight: float = Field(3.0, ge=0, description="the paper's alpha for logits; it takes 50 for features")
    maps: Literal["logits", "features"] = Field("logits", description="what to distil; features are projected by phi")
    temperature: float = Field(4.0, gt=0, description="tau of the softmax over space")

    @property
    def compares_stages(self) -> bool:
        """Of features, not of logits."""
        return self.maps == "features"


class CWD(Objective):
    """``tau^2 / (B C) sum_{b,c} KL(softmax_x(t / tau) || softmax_x(s / tau))``, softmax over voxels (Shu et al., 2021).

    On logits, ignored voxels are left out of both distributions. Terms: ``logits``, or one per encoder stage.
    """

    Settings: ClassVar[type[ProjectingSettings]] = CWDSettings

    def __init__(self, settings: CWDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.loss = CWDLoss(temperature=settings.temperature)
        self.needs_teacher_features = settings.maps == "features"
        self.needs_teacher_logits = settings.maps == "logits"
        self.projections = stage_projections(networks) if settings.maps == "features" else nn.ModuleList()

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar for the logits, or one per stage."""
        if self.needs_teacher_logits:
            assert step.teacher_logits is not None
            return {"logits": self.loss(step.student_logits, step.teacher_logits, step.targets.valid)}
        stages = zip(step.student_features, step.teacher_features, each(self.projections), strict=True)
        return {f"stage{index}": self.loss.compare(*stage) for index, stage in enumerate(stages)}
