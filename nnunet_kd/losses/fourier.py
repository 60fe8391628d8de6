"""Helpers on the half spectrum of real volumes, as ``torch.fft.rfftn`` gives it."""

from __future__ import annotations

from functools import lru_cache

import torch


def half_spectrum(x: torch.Tensor) -> torch.Tensor:
    """``rfftn`` of every spatial axis of ``(B, C, *spatial)``; complex, last axis halved."""
    spectrum: torch.Tensor = torch.fft.rfftn(x, dim=tuple(range(2, x.ndim)))
    return spectrum


def back_to_space(spectrum: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`half_spectrum` for volumes of spatial ``shape``."""
    volume: torch.Tensor = torch.fft.irfftn(spectrum, s=shape, dim=tuple(range(2, spectrum.ndim)))
    return volume


def frequencies(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Absolute frequency along every axis of the half spectrum, in units of that axis's Nyquist frequency: 0 to 1."""
    axes = [torch.fft.fftfreq(size, device=device, dtype=dtype).abs() * 2 for size in shape[:-1]]
    return [*axes, torch.fft.rfftfreq(shape[-1], device=device, dtype=dtype) * 2]


@lru_cache(maxsize=128)
def butterworth(
    shape: tuple[int, ...], cutoff: float, order: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Radial low-pass ``1 / (1 + (|f| / cutoff)^(2 order))`` on the half spectrum; ``|f|`` is 1 at Nyquist on an axis."""
    with torch.inference_mode(False):
        squared = torch.zeros((), device=device, dtype=dtype)
        for axis, frequency in enumerate(frequencies(shape, device, dtype)):
            squared = squared + frequency.square().view([-1 if place == axis else 1 for place in range(len(shape))])
        return 1.0 / (1.0 + (squared / cutoff**2) ** order)
