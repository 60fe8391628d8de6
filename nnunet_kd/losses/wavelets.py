"""Exact separable wavelet transforms in PyTorch, and the detail projection of Detail Consistent Distillation (DCD).

Tensors are ``(B, C, H, W)`` or ``(B, C, D, H, W)``; every spatial axis is transformed and channels stay apart. Bands are
named as PyWavelets names them, one letter per spatial axis: ``a`` is the paper's ``L``, ``d`` its ``H``; ``aad`` is
``LLH``.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import pywt
import torch

from nnunet_kd.losses.axis_operators import along_axis, axis_level, check_transform
from nnunet_kd.losses.band_projection import Bands, band_projection, kept_tensor

Coefficients = list[torch.Tensor | dict[str, torch.Tensor]]
"""As ``pywt.wavedecn`` returns them: ``[approximation, details of the coarsest level, ..., of the finest]``."""


def working_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float64 if a tensor has it, else float32: half precision is never computed in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _check_input(x: torch.Tensor) -> None:
    if x.ndim not in (4, 5):
        raise ValueError(f"expected (B, C, H, W) or (B, C, D, H, W), got a tensor of shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise ValueError(f"expected a floating-point tensor, got {x.dtype}.")


@lru_cache(maxsize=1024)
def _level_matrices(
    size: int, wavelet: str, mode: str, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    level = axis_level(size, wavelet, mode)
    low, high, inverse_low, inverse_high = (
        kept_tensor(matrix, dtype, device) for matrix in (level.low, level.high, level.inverse_low, level.inverse_high)
    )
    return low, high, inverse_low, inverse_high


def dwt(x: torch.Tensor, wavelet: str = "db4", levels: int = 3, mode: str = "periodization") -> Coefficients:
    """Multi-level transform of every spatial axis, recursing on the approximation (DCD paper, Eq. 2).

    Args:
        x: ``(B, C, *spatial)``; float16 and bfloat16 are computed in float32.
        wavelet: any discrete wavelet of PyWavelets.
        levels: how many levels, at least 1.
        mode: boundary handling, one of :data:`~nnunet_kd.losses.axis_operators.MODES`.

    Returns:
        The layout of ``pywt.wavedecn(x, wavelet, mode, levels, axes=spatial axes)``.

    Raises:
        ValueError: for an unknown wavelet or mode, fewer than one level, or a tensor of another rank.

    Examples:
        >>> approximation, details = dwt(torch.ones(1, 1, 4, 4, 4), "haar", levels=1)
        >>> tuple(approximation.shape), len(details)
        ((1, 1, 2, 2, 2), 7)
    """
    _check_input(x)
    check_transform(wavelet, levels, mode)
    with torch.autocast(x.device.type, enabled=False):
        approximation, details = x.to(working_dtype(x)), []
        for _ in range(levels):
            bands = {"": approximation}
            for axis in range(2, x.ndim):
                size = approximation.shape[axis]
                low, high, _, _ = _level_matrices(size, wavelet, mode, x.device, approximation.dtype)
                split = {}
                for name, band in bands.items():
                    split[name + "a"] = along_axis(band, low, axis)
                    split[name + "d"] = along_axis(band, high, axis)
                bands = split
            approximation = bands.pop("a" * (x.ndim - 2))
            details.append(bands)
    return [approximation, *reversed(details)]


def idwt(
    coefficients: Coefficients,
    wavelet: str = "db4",
    mode: str = "periodization",
    shape: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Inverse of :func:`dwt`.

    Args:
        coefficients: as :func:`dwt` returns them.
        wavelet: that of the analysis.
        mode: likewise.
        shape: the spatial sizes to return. Coefficients of an odd axis and of the next even one have the same size, so
            without ``shape`` the even one is returned, as ``pywt.waverecn`` does.

    Returns:
        ``(B, C, *shape)``.
    """
    approximation = coefficients[0]
    assert isinstance(approximation, torch.Tensor)
    dims = approximation.ndim - 2
    check_transform(wavelet, max(1, len(coefficients) - 1), mode)
    for index, details in enumerate(coefficients[1:], start=1):
        assert isinstance(details, dict)
        finer = coefficients[index + 1] if index + 1 < len(coefficients) else None
        if isinstance(finer, dict):
            target = tuple(next(iter(finer.values())).shape[2:])
        elif shape is not None:
            target = tuple(shape)
        else:
            surplus = 0 if mode == "periodization" else pywt.Wavelet(wavelet).dec_len - 2
            target = tuple(2 * size - surplus for size in approximation.shape[2:])
        bands = {"a" * dims: approximation, **details}
        with torch.autocast(approximation.device.type, enabled=False):
            for axis in reversed(range(2, 2 + dims)):
                _, _, inverse_low, inverse_high = _level_matrices(
                    target[axis - 2], wavelet, mode, approximation.device, approximation.dtype
                )
                prefixes = ["".join(letters) for letters in product("ad", repeat=axis - 2)]
                bands = {
                    prefix: along_axis(bands[prefix + "a"], inverse_low, axis)
                    + along_axis(bands[prefix + "d"], inverse_high, axis)
                    for prefix in prefixes
                }
        approximation = bands[""]
    return approximation


def detail_projection(
    x: torch.Tensor,
    wavelet: str = "db4",
    levels: int = 3,
    mode: str = "periodization",
    bands: Bands = "D",
    level: int | None = None,
) -> torch.Tensor:
    """``P_D`` of the DCD paper (Eq. 6): keep some bands, zero the others, invert the transform. Differentiable.

    Args:
        x: ``(B, C, H, W)`` or ``(B, C, D, H, W)``; float16 and bfloat16 are computed in float32.
        wavelet, levels, mode: the transform. The paper uses db4 and 3 levels and is silent on boundaries;
            ``periodization`` is our choice, the only mode that is orthonormal, as its Proposition 1 assumes.
        bands: which bands to keep; ``D`` is the method, the others its ablation (Table 4).
        level: restrict ``D`` or ``S`` to this level's bands (1 is the finest); default all levels.

    Returns:
        A tensor of ``x``'s shape, float32 (float64 for float64 input).

    Raises:
        ValueError: see :func:`dwt`.

    Examples:
        >>> x = torch.randn(1, 2, 16, 16, 16)
        >>> bool(torch.allclose(sum(detail_projection(x, bands=b) for b in "DSA"), x, atol=1e-5))
        True
    """
    _check_input(x)
    dtype = working_dtype(x)
    projection = band_projection(tuple(x.shape[2:]), wavelet, levels, mode, bands, level, x.device, dtype)
    with torch.autocast(x.device.type, enabled=False):
        return projection(x.to(dtype).flatten(0, 1)).view(x.shape)
