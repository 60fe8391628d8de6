"""Which of a teacher's channels a student's channels stand for."""

from __future__ import annotations

from typing import Literal

import torch
from scipy.linalg.lapack import dpstrf

ChannelChoice = Literal["spanning", "random", "regular"]
RELATIVE_FLOOR = 1e-8
CONSTANT = 1e-10
"""Share of a value's mean square; with a smaller variance it does not vary, but for what rounding leaves in float32."""


class Covariance:
    """Of channels over voxels, gathered piece by piece in float64.

    Args:
        channels: ``C``.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Take in values ``(voxels, C)``."""
        values = values.cpu().double()
        self._count += len(values)
        self._sum += values.sum(0)
        self._products.addmm_(values.T, values)

    def matrix(self) -> torch.Tensor:
        """``(C, C)``, float64; exactly zero for channels that do not vary."""
        mean, squares = self._sum / self._count, self._products / self._count
        covariance = squares - torch.outer(mean, mean)
        varying = covariance.diagonal() > CONSTANT * squares.diagonal()
        return torch.where(torch.outer(varying, varying), covariance, torch.zeros_like(covariance))


def choose_channels(covariance: torch.Tensor, count: int, choice: ChannelChoice, seed: int) -> torch.Tensor:
    """The channels to keep, in ascending order.

    ``spanning`` takes, one after the other, the channel with the largest variance that those taken before do not explain:
    QR with column pivoting of the centred activations, computed as the pivoted Cholesky factorisation of their covariance
    (LAPACK's ``dpstrf``). Where fewer channels span all others, the first of the rest fill up.

    Args:
        covariance: ``(C, C)``, float64.
        count: how many of them, ``1 <= count <= C``.
        choice: ``random`` and ``regular`` (every ``C / count``-th) do not look at the activations; for comparison.
        seed: of the random choice.

    Returns:
        ``(count,)``, int64.
    """
    channels = len(covariance)
    if choice == "random":
        order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
        return order[:count].sort().values
    if choice == "regular":
        return torch.arange(count) * channels // count
    _, pivots, rank, _ = dpstrf(covariance.numpy())
    spanning = [int(pivot) - 1 for pivot in pivots[: min(rank, count)]]
    others = [channel for channel in range(channels) if channel not in spanning]
    return torch.tensor(sorted(spanning + others[: count - len(spanning)]))


def interpolation(covariance: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The matrix ``T (C, count)`` of the best ``a ~ T a[kept]`` for centred activations: the identity on the kept channels.

    An interpolative decomposition (Chee et al., *Model Preserving Compression for Neural Networks*, NeurIPS 2022).
    """
    inner = covariance[kept][:, kept]
    floor = RELATIVE_FLOOR * float(inner.diagonal().mean()) or 1.0  # channels that depend on others, or do not vary
    solved = torch.linalg.solve(inner + floor * torch.eye(len(kept), dtype=torch.float64), covariance[kept])
    matrix: torch.Tensor = solved.T.clone()
    matrix[kept] = torch.eye(len(kept), dtype=torch.float64)
    return matrix


def selection(channels: int, kept: torch.Tensor) -> torch.Tensor:
    """The matrix ``T (C, count)`` that passes over all other channels."""
    return torch.eye(channels, dtype=torch.float64)[:, kept]
