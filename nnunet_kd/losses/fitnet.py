"""FitNet: plain imitation of features."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_kd.losses.projection import ChannelProjection, projected


class FitNetLoss(nn.Module):
    """``mean((T - phi(S))^2)`` (Romero et al., FitNets, 2015, Eq. 3).

    Args:
        projection: ``phi``; ``None`` where channels agree, and the loss is then zero at agreement.

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import ChannelProjection, FitNetLoss
        >>> loss = FitNetLoss(projection=ChannelProjection(2, 8))
        >>> loss(torch.randn(1, 2, 8, 8), torch.randn(1, 8, 8, 8)).ndim
        0
        >>> FitNetLoss()(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)).item()
        1.0
    """

    def __init__(self, projection: ChannelProjection | None = None) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """A scalar, float32 or the inputs' float64.

        Args:
            student: ``(B, Cs, *spatial)``.
            teacher: ``(B, Ct, *spatial)``.

        Raises:
            ValueError: shapes that do not fit together.
        """
        return self.compare(student, teacher, self.projection)

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, projection: ChannelProjection | None
    ) -> torch.Tensor:
        """As :meth:`forward`, with a projection that is kept elsewhere."""
        return (projected(student, teacher, projection) - teacher).square().mean()
