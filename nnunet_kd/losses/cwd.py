"""Channel-wise distillation (CWD): where in space a channel is active."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from nnunet_kd.losses.projection import ChannelProjection, projected


class CWDLoss(nn.Module):
    """``tau^2 / (B C) sum_{b,c} KL(softmax_x(t / tau) || softmax_x(s / tau))``, softmax over voxels (Shu et al., 2021).

    Args:
        projection: for features; ``None`` for logits and where channels agree, and the loss is then zero at agreement.
        temperature: ``tau``.

    Raises:
        ValueError: a temperature that is not above zero.

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import CWDLoss
        >>> teacher = torch.randn(2, 3, 8, 8, 8)
        >>> loss = CWDLoss(temperature=4)
        >>> bool(loss(torch.randn(2, 3, 8, 8, 8), teacher) > 0)
        True
        >>> loss(teacher, teacher).item()
        0.0
    """

    def __init__(self, projection: ChannelProjection | None = None, temperature: float = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"the temperature must be above 0, got {temperature}.")
        self.projection = projection
        self.temperature = temperature

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """A scalar, float32 or the inputs' float64.

        Args:
            student: ``(B, Cs, *spatial)``, features or logits.
            teacher: ``(B, Ct, *spatial)``.
            valid: ``(B, 1, *spatial)``, bool: voxels where it is false have no part in either distribution; ``None``: all.

        Raises:
            ValueError: shapes that do not fit together.
        """
        return self.compare(student, teacher, self.projection, valid)

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        projection: ChannelProjection | None,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As :meth:`forward`, with a projection that is kept elsewhere."""
        student = projected(student, teacher, projection)
        teacher, student = ((maps.to(student.dtype) / self.temperature).flatten(2) for maps in (teacher, student))
        if valid is not None:
            # not minus infinity: a patch without a valid voxel must give zero, not NaN
            ignored = ~valid.flatten(2)
            teacher, student = (maps.masked_fill(ignored, -1e9) for maps in (teacher, student))
        log_teacher = functional.log_softmax(teacher, dim=2)
        divergence = (log_teacher.exp() * (log_teacher - functional.log_softmax(student, dim=2))).sum(2)
        return self.temperature**2 * divergence.mean()
