"""FitNet: plain imitation of features, the papers' "Feature" baseline."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.projection import ProjectingSettings, each, stage_projections
from nnunet_kd.losses.fitnet import FitNetLoss


class FitNetSettings(ProjectingSettings):
    """The weight is ours: that of DCD, whose loss is this one restricted to some bands."""

    weight: float = Field(0.05, ge=0, description="factor of the objective in the total loss")


class FitNet(Objective):
    """``sum_i mean((T_i - phi_i(S_i))^2)`` over encoder stages (Romero et al., FitNets, 2015, Eq. 3).

    All stages instead of one hint layer is what the DCD paper's "Feature" row compares with (ours where it is silent).
    Terms: ``stage0`` (finest), ``stage1``, ...
    """

    Settings: ClassVar[type[ProjectingSettings]] = FitNetSettings

    def __init__(self, settings: FitNetSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.projections = stage_projections(networks)
        self.loss = FitNetLoss()

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per stage."""
        stages = zip(step.student_features, step.teacher_features, each(self.projections), strict=True)
        return {f"stage{index}": self.loss.compare(*stage) for index, stage in enumerate(stages)}
