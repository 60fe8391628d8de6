"""Intra-class feature variation distillation (IFVD)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs


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

    def __init__(self, settings: IFVDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per stage."""
        terms = {}
        stages = zip(step.student_features, step.teacher_features, strict=True)
        for index, (student, teacher) in enumerate(stages):
            members = self._members(step, tuple(student.shape[2:]), student.device)
            difference = variation(student, members) - variation(teacher, members)
            terms[f"stage{index}"] = difference.square().sum() / members.sum().clamp(min=1)
        return terms

    def _members(self, step: StepOutputs, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """One-hot classes ``(B, K, N)`` at a stage's resolution; ignored voxels belong to none."""
        classes = functional.interpolate(step.targets.classes[:, None].float(), shape, mode="nearest")
        members = functional.one_hot(classes.flatten(1).long(), step.targets.count).movedim(2, 1)
        if step.targets.valid is not None:
            valid = functional.interpolate(step.targets.valid.float(), shape, mode="nearest")
            members = members * valid.flatten(2).long()
        return members.to(device)


def variation(features: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of every voxel with the prototype of its class.

    Args:
        features: ``(B, C, *spatial)``.
        members: one-hot classes ``(B, K, N)``, ``N`` voxels.

    Returns:
        ``(B, N)``; 0 where a voxel belongs to no class.
    """
    voxels = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))
    belongs = members.to(voxels.dtype)
    # the sum instead of the mean: cosine similarity does not see the difference
    prototypes = functional.normalize(torch.matmul(belongs, voxels.transpose(1, 2)), dim=2, eps=1e-8)
    similarity = torch.matmul(prototypes, functional.normalize(voxels, dim=1, eps=1e-8))
    return (similarity * belongs).sum(1)
