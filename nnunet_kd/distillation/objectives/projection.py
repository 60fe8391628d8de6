"""The learned 1x1x1 projection between a student's and a teacher's channels."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from nnunet_kd.distillation.objectives.base import NetworkPair, ObjectiveSettings


class ProjectingSettings(ObjectiveSettings):
    """Settings of objectives that compare features of a student's stage with those of its teacher's."""

    projection_start: Literal["fitted", "random"] = Field(
        "random",
        description="of phi: fitted by least squares on training patches before the first iteration, or random",
    )


class ChannelProjection(nn.Module):
    """``phi``: a bias-free 1x1(x1) convolution ``Cs -> Ct``, kept as its matrix so that losses can fuse it.

    Initialised as a PyTorch convolution would be (uniform, bounded by ``1/sqrt(Cs)``). Without bias, because detail bands
    are blind to a constant.

    Args:
        student_channels, teacher_channels: ``Cs`` and ``Ct``.
        learned: ``False`` keeps the random start, as the code that accompanies the DCD paper does.
    """

    weight: nn.Parameter

    def __init__(self, student_channels: int, teacher_channels: int, learned: bool = True) -> None:
        super().__init__()
        bound = student_channels**-0.5
        start = torch.empty(teacher_channels, student_channels).uniform_(-bound, bound)
        self.weight = nn.Parameter(start, requires_grad=learned)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, Cs, *spatial)`` to ``(B, Ct, *spatial)``, in at least float32."""
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        weight = self.weight.to(features.dtype)
        batch, _, *spatial = features.shape
        return torch.matmul(weight, features.flatten(2)).view(batch, len(weight), *spatial)


def stage_projections(networks: NetworkPair, learned: bool = True) -> nn.ModuleList:
    """One :class:`ChannelProjection` per encoder stage, finest first."""
    return nn.ModuleList(
        ChannelProjection(student, teacher, learned)
        for student, teacher in zip(networks.student_channels, networks.teacher_channels, strict=True)
    )
