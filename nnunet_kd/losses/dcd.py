"""Detail Consistent Distillation (DCD) of one stage."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_kd.losses.axis_operators import check_transform
from nnunet_kd.losses.band_projection import Bands
from nnunet_kd.losses.detail_loss import detail_loss
from nnunet_kd.losses.projection import ChannelProjection, check_pair


class DCDLoss(nn.Module):
    """``mean((P_D(T) - P_D(phi(S)))^2)``, with ``P_D`` the detail bands of a wavelet transform (DCD paper, Eq. 6 to 8).

    Args:
        projection: ``phi``; ``None`` where channels agree, and the loss is then zero at agreement.
        wavelet: any discrete wavelet of PyWavelets.
        levels: of the transform.
        mode: boundary handling, see :func:`~nnunet_kd.losses.wavelets.detail_projection`.
        bands: what to compare: ``D`` (details without the finest diagonal, the method), ``S``, ``A`` or ``all``.
        per_level: the mean of one loss per level, instead of one over all levels' bands.
        inverse: ``False``: mean square over coefficients instead of over what they reconstruct.

    Raises:
        ValueError: unknown wavelet, mode or levels.

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import ChannelProjection, DCDLoss
        >>> loss = DCDLoss(projection=ChannelProjection(2, 8), levels=2)
        >>> student = torch.randn(1, 2, 16, 16, 16, requires_grad=True)
        >>> loss(student, torch.randn(1, 8, 16, 16, 16)).backward()
        >>> [name for name, _ in loss.named_parameters()]
        ['projection.weight']
        >>> DCDLoss()(student, student.detach()).item()
        0.0
    """

    def __init__(
        self,
        projection: ChannelProjection | None = None,
        *,
        wavelet: str = "db4",
        levels: int = 3,
        mode: str = "periodization",
        bands: Bands = "D",
        per_level: bool = False,
        inverse: bool = True,
    ) -> None:
        super().__init__()
        check_transform(wavelet, levels, mode)
        self.projection = projection
        self.wavelet, self.levels, self.mode, self.bands = wavelet, levels, mode, bands
        self.per_level, self.inverse = per_level, inverse

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """A scalar, float32 or the inputs' float64.

        Args:
            student: ``(B, Cs, *spatial)``, two or three spatial axes.
            teacher: ``(B, Ct, *spatial)``; receives no gradient.

        Raises:
            ValueError: shapes that do not fit together.
        """
        return self.compare(student, teacher, self.projection)

    def compare(
        self, student: torch.Tensor, teacher: torch.Tensor, projection: ChannelProjection | None
    ) -> torch.Tensor:
        """As :meth:`forward`, with a projection that is kept elsewhere."""
        check_pair(student, teacher, projection)
        weight = (
            torch.eye(teacher.shape[1], dtype=student.dtype, device=student.device)
            if projection is None
            else projection.weight
        )
        return detail_loss(
            teacher,
            student,
            weight,
            wavelet=self.wavelet,
            levels=self.levels,
            mode=self.mode,
            bands=self.bands,
            per_level=self.per_level,
            inverse=self.inverse,
        )
