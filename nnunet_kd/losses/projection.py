"""The learned 1x1x1 projection between a student's and a teacher's channels."""

from __future__ import annotations

import torch
from torch import nn


class ChannelProjection(nn.Module):
    """``phi``: a bias-free 1x1(x1) convolution ``Cs -> Ct``, kept as its matrix so that losses can fuse it.

    Initialised as a PyTorch convolution would be (uniform, bounded by ``1/sqrt(Cs)``). Without bias, because detail bands
    are blind to a constant.

    Args:
        student_channels: ``Cs``.
        teacher_channels: ``Ct``.
        learned: ``False`` keeps the random start, as the code that accompanies the DCD paper does.

    Examples:
        >>> import torch
        >>> projection = ChannelProjection(4, 16)
        >>> projection(torch.randn(2, 4, 8, 8, 8)).shape
        torch.Size([2, 16, 8, 8, 8])
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


def projected(student: torch.Tensor, teacher: torch.Tensor, projection: ChannelProjection | None) -> torch.Tensor:
    """The student's features with the teacher's channels, in at least float32.

    Args:
        student: ``(B, Cs, *spatial)``.
        teacher: ``(B, Ct, *spatial)``.
        projection: from ``Cs`` to ``Ct``; ``None``: both are the same.

    Raises:
        ValueError: shapes that do not fit together.
    """
    check_pair(student, teacher, projection)
    if projection is not None:
        own: torch.Tensor = projection(student)
        return own
    return student.to(torch.promote_types(student.dtype, torch.float32))


def check_pair(student: torch.Tensor, teacher: torch.Tensor, projection: ChannelProjection | None) -> None:
    """Raises ValueError: student and teacher differ in batch or spatial size, or the channels do not fit the projection."""
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in batch or spatial size."
        )
    channels = (teacher.shape[1], student.shape[1])
    if projection is None and channels[0] != channels[1]:
        raise ValueError(
            f"the student has {channels[1]} channels and the teacher {channels[0]}: give "
            f"projection=ChannelProjection({channels[1]}, {channels[0]})."
        )
    if projection is not None and tuple(projection.weight.shape) != channels:
        raise ValueError(
            f"the projection goes from {projection.weight.shape[1]} to {projection.weight.shape[0]} channels, but the student "
            f"has {channels[1]} and the teacher {channels[0]}."
        )
