"""Intra-class feature variation distillation (IFVD)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.losses.ifvd import IFVDLoss


class IFVDSettings(ObjectiveSettings):
    """The weight is ours."""

    weight: float = Field(1.0, ge=0, description="factor of the objective in the total loss")


class IFVD(Objective):
    """Mean squared difference of teacher's and student's intra-class variation maps (Wang et al., 2020, Eq. 1 to 3).

    A class's prototype is the mean feature of its voxels in one image; a voxel's variation is the cosine similarity of its
    feature with the prototype of its own class. Maps have one channel, so nothing is projected. All encoder stages, labels
    taken at the nearest voxel, the background a class as any other, ignored voxels left out (ours).
    Terms: ``stage0`` (finest), ``stage1``, ...
    """

    Settings: ClassVar[type[ObjectiveSettings]] = IFVDSettings
    reads_labels: ClassVar[bool] = True

    def __init__(self, settings: IFVDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.loss = IFVDLoss()

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per stage."""
        reference = (step.targets.classes, step.targets.valid, step.targets.count)
        stages = zip(step.student_features, step.teacher_features, strict=True)
        return {
            f"stage{index}": self.loss(student, teacher, *reference) for index, (student, teacher) in enumerate(stages)
        }
