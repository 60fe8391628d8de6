"""Keep some wavelet bands of a volume and invert the transform: sums of separable products, built once per shape.

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
from typing import Any, Literal

import numpy as np
import torch

from nnunet_kd.losses.axis_operators import along_axis, axis_term, check_transform, is_orthonormal

Bands = Literal["D", "S", "A", "all"]
"""``A``: the approximation; ``S``: high-pass along every axis, at every level; ``D``: the rest; ``all``: everything."""


def kept_tensor(matrix: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that later calls may use for gradients, even if the first call is made in inference mode."""
    with torch.inference_mode(False):
        return torch.tensor(matrix, dtype=dtype, device=device)


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
            tuple(kept_tensor(axis.analysis, dtype, device) for axis in axes),
            tuple(kept_tensor(axis.synthesis, dtype, device) for axis in axes),
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
