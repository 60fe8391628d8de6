"""Exact separable wavelet transforms in PyTorch, and the detail projection of Detail Consistent Distillation (DCD).

Tensors are ``(B, C, H, W)`` or ``(B, C, D, H, W)``; every spatial axis is transformed and channels stay apart. Bands are
named as PyWavelets names them, one letter per spatial axis: ``a`` is the paper's ``L``, ``d`` its ``H``; ``aad`` is
``LLH``.

The projection ``P_D`` of the paper (Eq. 6) keeps the directional bands of every level and inverts the transform. Because
all bands together reconstruct the input and the two families that are left out are pure tensor products,

    P_D = I - A_l - sum_{j=1..l} S_j,        A_l = a_l x a_l x a_l,        S_j = h_j x h_j x h_j,

with ``a_l`` (``h_j``) the low-pass (high-pass) band along one axis, analysis followed by synthesis. These are ``l + 1``
products of small matrices per axis instead of the ``7 l`` bands of a transform and its inverse, and they are exact in
every boundary mode and at every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
import pywt
import torch

from nnunet_kd.losses.axis_operators import along_axis, axis_level, axis_term, check_transform, is_orthonormal

Bands = Literal["D", "S", "A", "all"]
"""``A``: the approximation; ``S``: high-pass along every axis, at every level; ``D``: the rest; ``all``: everything."""

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
        _kept_tensor(matrix, dtype, device) for matrix in (level.low, level.high, level.inverse_low, level.inverse_high)
    )
    return low, high, inverse_low, inverse_high


def _kept_tensor(matrix: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that later calls may use for gradients, even if the first call is made in inference mode."""
    with torch.inference_mode(False):
        return torch.tensor(matrix, dtype=dtype, device=device)


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


@dataclass(frozen=True)
class SeparableTerm:
    """``sign`` times a tensor product of per-axis projections; matrices are ``(m, n)`` and ``(n, m)`` per axis."""

    sign: float
    analysis: tuple[torch.Tensor, ...]
    synthesis: tuple[torch.Tensor, ...]


class BandProjection:
    """A band selection followed by the inverse transform, as ``identity * x + sum of separable terms``.

    Built once per (spatial shape, wavelet, levels, mode, bands, level, device, dtype) by :func:`band_projection`.
    """

    def __init__(self, identity: float, terms: list[SeparableTerm], orthonormal: bool) -> None:
        self.identity = identity
        self.terms = terms
        self.orthonormal = orthonormal
        """Then the projection is symmetric and idempotent, and is its own adjoint."""
        self._forward = self._stack([(t.sign, t.analysis, t.synthesis) for t in terms])
        adjoint = [(t.sign, tuple(m.T for m in t.synthesis), tuple(m.T for m in t.analysis)) for t in terms]
        self._adjoint = self._forward if orthonormal else self._stack(adjoint)

    @staticmethod
    def _stack(terms: list[tuple[float, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]) -> Any:
        """Join the first axis of all terms, so that the two full-size products are one large product each."""
        if not terms:
            return None
        analysis = torch.cat([a[0] for _, a, _ in terms])
        synthesis = torch.cat([sign * s[0] for sign, _, s in terms], dim=1)
        heights = [a[0].shape[0] for _, a, _ in terms]
        inner = [([m.contiguous() for m in a[1:]], [m.contiguous() for m in s[1:]]) for _, a, s in terms]
        return analysis, synthesis, heights, inner

    def workspace(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scratch memory for :meth:`apply_` on volumes of up to ``x``'s size; fresh pages cost more than the products."""
        height = max((stacked[0].shape[0] for stacked in (self._forward, self._adjoint) if stacked), default=0)
        size = x.shape[0] * height * x[0, 0].numel()
        return x.new_empty(size), x.new_empty(size)

    def apply_(
        self, x: torch.Tensor, workspace: tuple[torch.Tensor, torch.Tensor], adjoint: bool = False
    ) -> torch.Tensor:
        """Project ``x (N, *spatial)`` in place (``x`` is contiguous, needs no gradient) and return it."""
        return self._project(x, self._adjoint if adjoint else self._forward, workspace)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project ``x (N, *spatial)``; differentiable."""
        return self._project(x, self._forward, None)

    def _project(
        self, x: torch.Tensor, stacked: Any, workspace: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        in_place = workspace is not None
        if stacked is None:
            return x if self.identity == 1 else x.mul_(self.identity) if in_place else x * self.identity
        analysis, synthesis, heights, inner = stacked
        count, size, *rest = x.shape
        planes = x.reshape(count, size, -1)
        scratch: list[torch.Tensor | None] = [None, None]
        if workspace is not None:
            shape = (count, sum(heights), planes.shape[2])
            scratch = [memory[: shape[0] * shape[1] * shape[2]].view(shape) for memory in workspace]
        coefficients = torch.matmul(analysis, planes, out=scratch[0])
        reconstructed = []
        for band, (analyses, syntheses) in zip(coefficients.split(heights, dim=1), inner, strict=True):
            band = band.reshape(-1, *rest)
            for axis, matrix in enumerate(analyses, start=1):
                band = along_axis(band, matrix, axis)
            for axis, matrix in reversed(list(enumerate(syntheses, start=1))):
                band = along_axis(band, matrix, axis)
            reconstructed.append(band.view(count, -1, planes.shape[2]))
        joined = torch.cat(reconstructed, dim=1, out=scratch[1])
        synthesis = synthesis.expand(count, -1, -1)
        if in_place:
            planes.baddbmm_(synthesis, joined, beta=self.identity)
            return x
        return torch.baddbmm(planes, synthesis, joined, beta=self.identity).view(x.shape)


@lru_cache(maxsize=512)
def band_projection(
    shape: tuple[int, ...],
    wavelet: str,
    levels: int,
    mode: str,
    bands: Bands,
    level: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> BandProjection:
    """The projection onto ``bands`` of a volume of spatial ``shape``.

    ``level`` restricts ``D`` and ``S`` to that level's bands; ``None`` takes all levels together.

    Raises:
        ValueError: unknown bands, wavelet or mode, or a level that the transform does not have.
    """
    check_transform(wavelet, levels, mode)
    if bands not in ("D", "S", "A", "all"):
        raise ValueError(f"bands must be one of D, S, A, all; got {bands!r}.")
    if level is not None and not 1 <= level <= levels:
        raise ValueError(f"level must be between 1 and {levels}, got {level}.")

    def term(sign: float, at: int, high: bool) -> SeparableTerm:
        axes = [axis_term(size, wavelet, mode, at, high) for size in shape]
        return SeparableTerm(
            sign,
            tuple(_kept_tensor(axis.analysis, dtype, device) for axis in axes),
            tuple(_kept_tensor(axis.synthesis, dtype, device) for axis in axes),
        )

    identity, terms = 0.0, []
    first, last = (1, levels) if level is None else (level, level)
    if bands == "all" or (bands == "D" and first == 1):
        identity = 1.0
    elif bands == "D":
        terms.append(term(1.0, first - 1, high=False))
    if bands in ("S", "D"):
        terms += [term(1.0 if bands == "S" else -1.0, at, high=True) for at in range(first, last + 1)]
    if bands in ("A", "D"):
        terms.append(term(1.0 if bands == "A" else -1.0, last, high=False))
    with torch.inference_mode(False):
        return BandProjection(identity, terms, is_orthonormal(shape, wavelet, levels, mode))


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
