"""Segmentation heads, fitted to what the teacher says instead of to its logits.

Least squares on logits spends most on voxels far from any border, where logits are large. A head has so few weights that
the divergence of its probabilities from the teacher's can be minimised itself: a convex problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

MOST_ITERATIONS = 200
UNUSED_WEIGHT = 1e-6
"""nnU-Net's weight of the coarsest deep-supervision scale at most: 0, or so little that DDP finds its parameters in use."""


def fit_probabilities(
    inputs: torch.Tensor,
    teacher_logits: torch.Tensor,
    start: tuple[torch.Tensor, torch.Tensor],
    prior: torch.Tensor,
    ridge: float,
    regions: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``argmin mean_n KL(p_n || softmax(X_n W + b)) + ridge v / 2 ||W - W0||^2``, ``v`` the mean variance of the inputs.

    With regions, every class has a sigmoid of its own. L-BFGS of PyTorch, with line search.

    Args:
        inputs: ``X (n, p)``, float64.
        teacher_logits: ``(n, q)``, float64; ``p`` are their probabilities.
        start: ``W (p, q)`` and ``b (q,)``, float64.
        prior: ``W0 (p, q)``.
        ridge: see :class:`~nnunet_kd.distillation.starts.options.InheritanceSettings`.
        regions: sigmoid instead of softmax.

    Returns:
        ``W`` and ``b``; the start where that is better, which a minimisation that fails cannot change.
    """
    # L-BFGS of PyTorch 2.6 takes no gradients of other layouts
    weight, bias = (value.clone(memory_format=torch.contiguous_format).requires_grad_() for value in start)
    penalty = ridge * float(inputs.var(0, correction=0).mean()) / 2
    probabilities = teacher_logits.sigmoid() if regions else teacher_logits.softmax(1)

    def objective() -> torch.Tensor:
        logits = inputs @ weight + bias
        if regions:
            divergence = functional.binary_cross_entropy_with_logits(logits, probabilities, reduction="sum")
        else:
            divergence = -(probabilities * logits.log_softmax(1)).sum()
        return divergence / len(inputs) + penalty * (weight - prior).square().sum()

    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    with torch.enable_grad():
        before = float(objective().detach())
        optimizer.step(closure)
        after = float(objective().detach())
    return (weight.detach(), bias.detach()) if after < before else start


def unused_heads(heads: Sequence[str], weights: Sequence[float]) -> set[str]:
    """The segmentation heads whose output counts neither in nnU-Net's loss nor in prediction.

    Args:
        heads: their names, coarsest first.
        weights: of the deep-supervision scales in the loss, finest first; the only one without deep supervision.
    """
    # without deep supervision the finest one alone
    used = {head for head, weight in zip(reversed(heads), weights, strict=False) if weight > UNUSED_WEIGHT}
    return {*heads} - used
