"""Ridge regressions that shrink towards given weights, gathered piece by piece in float64.

Both solve for the *difference* to the given weights ``W0``, from what ``W0`` leaves: with residuals ``R = Z - X W0``,
``argmin ||X D - R||^2 + lambda ||D||^2``. Where ``W0`` explains everything, ``D`` is 0 for every ``lambda``; where samples say
nothing, too. ``lambda`` is a share (``ridge``) of the mean diagonal of ``X^T X``; at least :data:`RESOLVED` of its trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnunet_kd.distillation.starts.channels import CONSTANT

RESOLVED = 16 * torch.finfo(torch.float64).eps
"""Share of a Gram matrix's trace; a smaller penalty is lost in the rounding of its Cholesky factorisation."""
BLOCK = 512
"""Columns of a Gram matrix that are computed at once: it is symmetric, so that those above its diagonal blocks are not."""


class NoSolution(ArithmeticError):
    """The normal equations of a regression cannot be solved in float64."""


class CentredRegression:
    """For a convolution before an instance norm, which takes mean and scale out: inputs and targets come centred.

    Args:
        unknowns: ``p``, weights per output.
        outputs: ``q``.
        samples: how many rows will come at most; with fewer rows than unknowns the rows are kept and the dual problem is
            solved (the same minimum from a smaller system).
        ridge: see the module.
    """

    def __init__(self, unknowns: int, outputs: int, samples: int, ridge: float) -> None:
        self._ridge = ridge
        self._unknowns = unknowns
        self._dual = samples < unknowns
        self._rows: list[torch.Tensor] = [torch.zeros(0, unknowns, dtype=torch.float64)]
        self._residuals: list[torch.Tensor] = [torch.zeros(0, outputs, dtype=torch.float64)]
        size = 0 if self._dual else unknowns
        self._gram = torch.zeros(size, size, dtype=torch.float64)
        self._right = torch.zeros(size, outputs, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, residuals: torch.Tensor, weight: float) -> None:
        """Take in rows ``(n, p)`` and ``(n, q)``, float64, whose squared errors count ``weight`` times."""
        if self._dual:
            self._rows.append(inputs * weight**0.5)
            self._residuals.append(residuals * weight**0.5)
        else:
            for start in range(0, self._unknowns, BLOCK):
                columns = slice(start, start + BLOCK)
                self._gram[start:, columns].addmm_(inputs[:, start:].T, inputs[:, columns], alpha=weight)
            self._right.addmm_(inputs.T, residuals, alpha=weight)

    def solve(self) -> torch.Tensor:
        """``D (p, q)``, float64.

        Raises:
            NoSolution: what came is not finite.
        """
        if not self._dual:
            mean = _mean_diagonal(self._gram)
            return _solve(self._gram, _penalty(self._ridge, mean, mean, self._unknowns), self._right)
        rows, residuals = torch.cat(self._rows), torch.cat(self._residuals)
        mean = float(rows.square().sum()) / self._unknowns or 1.0
        return rows.T @ _solve(rows @ rows.T, _penalty(self._ridge, mean, mean, self._unknowns), residuals)


class InterceptRegression:
    """For layers without a norm: ``R_k = X D_k + d`` for several targets ``k`` that share one intercept per output.

    An up-convolution has one target per place in its kernel, a segmentation head one. The intercept is not penalised.

    Args:
        shape: ``(p, K, q)``: inputs, targets and outputs.
        ridge: see the module; of the centred inputs.
        intercept: ``False``: the layer has no bias, ``d = 0``.
    """

    def __init__(self, shape: Sequence[int], ridge: float, intercept: bool) -> None:
        unknowns, targets, outputs = shape
        self._ridge, self._intercept = ridge, intercept
        self._count = 0
        self._sum = torch.zeros(unknowns, dtype=torch.float64)
        self._gram = torch.zeros(unknowns, unknowns, dtype=torch.float64)
        self._residual_sum = torch.zeros(targets, outputs, dtype=torch.float64)
        self._right = torch.zeros(unknowns, targets, outputs, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, residuals: torch.Tensor) -> None:
        """Take in rows ``(n, p)`` and ``(n, K, q)``, float64."""
        self._count += len(inputs)
        self._sum += inputs.sum(0)
        self._gram.addmm_(inputs.T, inputs)
        self._residual_sum += residuals.sum(0)
        self._right += torch.einsum("np,nkq->pkq", inputs, residuals)

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``D (p, K, q)`` and ``d (q,)``, float64.

        Raises:
            NoSolution: what came is not finite.
        """
        unknowns, targets, outputs = self._right.shape
        spread = self._gram - torch.outer(self._sum, self._sum) / max(self._count, 1)
        mean, varying = _mean_diagonal(self._gram), float(spread.diagonal().mean())
        # of inputs that do not vary, what rounding leaves must not decide: the intercept says all that can be said
        penalty = _penalty(self._ridge, varying if varying > CONSTANT * mean else mean, mean, unknowns)
        known = torch.cat([self._sum[:, None], self._right.view(unknowns, -1)], dim=1)
        solved = _solve(self._gram, penalty, known)
        of_sum, differences = solved[:, 0], solved[:, 1:].view(unknowns, targets, outputs)
        if not self._intercept:
            return differences, torch.zeros(outputs, dtype=torch.float64)
        # minimised over D for every d, what is left is a parabola in d
        left = self._residual_sum.sum(0) - torch.einsum("p,pkq->q", self._sum, differences)
        curvature = targets * (self._count - float(self._sum @ of_sum))
        intercept = left / curvature if curvature > 0 else torch.zeros_like(left)
        return differences - of_sum[:, None, None] * intercept, intercept


def _mean_diagonal(gram: torch.Tensor) -> float:
    """1 where all inputs are zero: then any penalty keeps the given weights."""
    return float(gram.diagonal().mean()) or 1.0


def _penalty(ridge: float, varying: float, mean: float, unknowns: int) -> float:
    """``lambda``; ``varying``, ``mean``: the mean diagonal of the Gram matrix of centred inputs, and of the one to solve."""
    return max(ridge * varying, RESOLVED * unknowns * mean)


def _solve(matrix: torch.Tensor, penalty: float, right: torch.Tensor) -> torch.Tensor:
    """Reads the lower triangle of ``matrix``, whose diagonal it changes."""
    matrix.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise NoSolution("the matrix of a regression is not positive definite")
    return torch.cholesky_solve(right, factor)
