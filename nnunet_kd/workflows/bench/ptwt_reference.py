"""The DCD stage loss as one would write it with ptwt: the slow form that ours is compared with, in speed and in value."""

from __future__ import annotations

import ptwt
import torch


def detail_projection(x: torch.Tensor, wavelet: str = "db4", levels: int = 3, mode: str = "zero") -> torch.Tensor:
    """``P_D`` (DCD paper, Eq. 6) of ``x (B, C, D, H, W)`` through ``ptwt.wavedec3`` and ``ptwt.waverec3``."""
    approximation, *details = ptwt.wavedec3(x, wavelet, mode=mode, level=levels)
    kept = [
        {name: torch.zeros_like(band) if name == "ddd" else band for name, band in level.items()} for level in details
    ]
    full: torch.Tensor = ptwt.waverec3((torch.zeros_like(approximation), *kept), wavelet)
    return full[..., : x.shape[2], : x.shape[3], : x.shape[4]]


def detail_loss(
    teacher: torch.Tensor,
    student: torch.Tensor,
    weight: torch.Tensor,
    wavelet: str = "db4",
    levels: int = 3,
    mode: str = "zero",
) -> torch.Tensor:
    """Eq. 7 literally: project the student's channels, transform both sides, average the squared difference."""
    projected = torch.einsum("ts,bs...->bt...", weight, student)
    ours, theirs = (detail_projection(side, wavelet, levels, mode) for side in (projected, teacher))
    return (theirs - ours).square().mean()
