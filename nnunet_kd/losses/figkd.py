"""FiGKD: the fine detail of the logits."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from nnunet_kd.losses.axis_operators import axis_level
from nnunet_kd.losses.projection import check_pair
from nnunet_kd.losses.wavelets import dwt


class FiGKDLoss(nn.Module):
    """``sum over bands of mean |W_b(z_s) - W_b(z_t)|``, all bands but the approximation (FiGKD paper).

    The transform is linear, so that one transform of the difference of the logits is enough; where voxels are ignored the
    difference is zero, and the mean is over the others. Over space the edges of ignored areas are details, too. The boundary
    mode is periodization, in which a constant added to the logits changes no detail. Over classes the vector is padded with
    zeros to an even length, as in the paper's setting.

    Args:
        axis: ``space``: transform the logit maps; ``class``: every voxel's class vector, as the paper does.
        wavelet: any discrete wavelet of PyWavelets; default: ``db4`` over space, ``haar`` over classes.
        levels: of the transform over space; over classes there is one.

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import FiGKDLoss
        >>> teacher = torch.randn(1, 3, 16, 16)
        >>> loss = FiGKDLoss()
        >>> bool(loss(torch.randn(1, 3, 16, 16), teacher) > 0)
        True
        >>> bool(loss(teacher + 5, teacher) < 1e-5)
        True
    """

    def __init__(self, axis: Literal["space", "class"] = "space", wavelet: str | None = None, levels: int = 1) -> None:
        super().__init__()
        self.over_classes = axis == "class"
        self.levels = levels
        self.wavelet = wavelet or ("haar" if self.over_classes else "db4")

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """A scalar.

        Args:
            student: logits ``(B, K, *spatial)``.
            teacher: likewise.
            valid: ``(B, 1, *spatial)``, bool: voxels where it is false do not count; ``None``: all.

        Raises:
            ValueError: shapes that do not fit together; see also :func:`~nnunet_kd.losses.wavelets.dwt`.
        """
        return torch.stack(list(self.terms(student, teacher, valid).values())).sum()

    def terms(
        self, student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """One scalar per band, named by level and PyWavelets' letters, as ``level1_aad``; over classes ``detail``."""
        check_pair(student, teacher, None)
        difference = student - teacher
        share: torch.Tensor | float = 1.0
        if valid is not None:
            difference = difference.where(valid, 0.0)
            share = valid.float().mean().clamp(min=1 / valid.numel())
        if self.over_classes:
            matrix = _class_details(student.shape[1], self.wavelet, difference.dtype, difference.device)
            return {"detail": torch.einsum("dk,bk...->bd...", matrix, difference).abs().mean() / share}
        _, *details = dwt(difference, self.wavelet, self.levels, "periodization")
        terms = {}
        for place, bands in enumerate(details):
            assert isinstance(bands, dict)
            terms.update(
                {f"level{self.levels - place}_{name}": band.abs().mean() / share for name, band in bands.items()}
            )
        return terms


@lru_cache(maxsize=16)
def _class_details(heads: int, wavelet: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix that takes class vectors to their details."""
    rows = axis_level(heads + heads % 2, wavelet, "periodization").high[:, :heads]
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=dtype, device=device)
