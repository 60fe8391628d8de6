"""Wavelet analysis and synthesis along one axis, as small matrices.

A discrete wavelet transform is linear, whatever its boundary mode, so along an axis of ``n`` samples each of its bands
is a matrix. Applying ``pywt.dwt`` and ``pywt.idwt`` to the identity yields those matrices exactly, for every wavelet,
every mode, odd sizes and sizes smaller than the filter; everything else in this package is products of them. PyWavelets
is therefore the single authority on what the transform is, and no filter is written down here.

Notation: level ``l`` maps ``n_{l-1}`` samples to ``n_l`` approximation (low-pass) and ``n_l`` detail (high-pass) samples,
with ``n_0 = n``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pywt
import torch

MODES = ("periodization", "zero", "constant", "symmetric", "reflect", "periodic")
"""Boundary modes, named as PyWavelets names them."""


@dataclass(frozen=True)
class AxisLevel:
    """One level along one axis.

    Attributes:
        low, high: analysis matrices, each ``(n_l, n_{l-1})``.
        inverse_low, inverse_high: synthesis matrices, each ``(n_{l-1}, n_l)``;
            ``inverse_low @ low + inverse_high @ high`` is the identity.
    """

    low: np.ndarray
    high: np.ndarray
    inverse_low: np.ndarray
    inverse_high: np.ndarray


@dataclass(frozen=True)
class AxisTerm:
    """Analysis ``(m, n)`` and synthesis ``(n, m)`` of one band at one level, straight from and to the full-size axis."""

    analysis: np.ndarray
    synthesis: np.ndarray


def check_wavelet(name: str) -> str:
    """The name itself, if it is one of PyWavelets' discrete wavelets.

    Raises:
        ValueError: it is not.
    """
    if name not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"{name!r} is not a discrete wavelet of PyWavelets; try db4, haar or sym4")
    return name


def check_transform(wavelet: str, levels: int, mode: str) -> None:
    """Refuse what the transform cannot do.

    Raises:
        ValueError: unknown or continuous wavelet, unknown mode, or fewer than one level.
    """
    check_wavelet(wavelet)
    if mode not in MODES:
        raise ValueError(f"boundary mode {mode!r} is not one of {', '.join(MODES)}.")
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}.")


@lru_cache(maxsize=1024)
def axis_level(size: int, wavelet: str, mode: str) -> AxisLevel:
    """Matrices of a single-level transform of an axis with ``size`` samples.

    Raises:
        ValueError: PyWavelets refuses this mode at this size (``reflect`` needs two samples).
    """
    identity = np.eye(size)
    try:
        low, high = pywt.dwt(identity, wavelet, mode=mode, axis=0)
    except ValueError as error:
        raise ValueError(f"mode {mode!r} cannot transform an axis of {size} sample(s): {error}") from error
    band = np.eye(low.shape[0])
    # idwt returns one sample too many where an odd axis was extended by one
    inverse_low = pywt.idwt(band, None, wavelet, mode=mode, axis=0)[:size]
    inverse_high = pywt.idwt(None, band, wavelet, mode=mode, axis=0)[:size]
    return AxisLevel(low, high, inverse_low, inverse_high)


@lru_cache(maxsize=1024)
def axis_term(size: int, wavelet: str, mode: str, level: int, high: bool) -> AxisTerm:
    """The low-pass (``high=False``) or high-pass band of level ``level >= 1``, composed over the levels before it."""
    analysis, synthesis, current = np.eye(size), np.eye(size), size
    for step in range(1, level + 1):
        matrices = axis_level(current, wavelet, mode)
        take_high = high and step == level
        analysis = (matrices.high if take_high else matrices.low) @ analysis
        synthesis = synthesis @ (matrices.inverse_high if take_high else matrices.inverse_low)
        current = analysis.shape[0]
    return AxisTerm(analysis, synthesis)


def is_orthonormal(sizes: tuple[int, ...], wavelet: str, levels: int, mode: str) -> bool:
    """Whether the transform of axes with these sizes is orthonormal.

    Proposition 1 of the DCD paper assumes it. Among the modes only ``periodization`` offers it, and only while every
    level halves an even number of samples.
    """
    if mode != "periodization" or not pywt.Wavelet(wavelet).orthogonal:
        return False
    return all(size % 2**levels == 0 for size in sizes)


def along_axis(x: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiply ``matrix (m, n)`` into axis ``axis`` of ``x``, which has ``n`` samples there; it then has ``m``."""
    axis %= x.ndim
    if axis == x.ndim - 1:
        return x @ matrix.T
    if axis == x.ndim - 2:
        return torch.matmul(matrix, x)
    shape = x.shape
    product = torch.matmul(matrix, x.reshape(*shape[: axis + 1], -1))
    return product.reshape(*shape[:axis], matrix.shape[0], *shape[axis + 1 :])
