"""The exponentially averaged student (EMA)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def warmed_up_decay(decay: float, iteration: int) -> float:
    """``min(decay, (1 + n) / (10 + n))`` in iteration ``n`` of a run, counted from 0.

    Of what the average held at the start, ``9! n! / (n + 9)!`` is left after ``n`` iterations: 1e-5 after ten, where a decay
    of 0.999 alone would leave 78% after an epoch of 250. Until the limit is reached the average is about that of the last ninth
    of all iterations; 0.999 is reached after 8990. It depends on the run's iteration alone, so a run that is stopped and
    continued averages as one that is not.
    """
    return min(decay, (1 + iteration) / (10 + iteration))


class StudentAverage:
    """Average of a student's weights over iterations, exchangeable with the weights in training.

    Args:
        network: the plain student, without DDP, compile or hooks around it.
        decay: share of the old average kept in every iteration, once :func:`warmed_up_decay` has reached it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._decay, self._decay_now = decay, decay
        self._average = AveragedModel(network, multi_avg_fn=self._mix, use_buffers=True)
        self._average.update_parameters(network)  # the first update copies
        self.in_use = False
        """Whether the network currently holds the average, and this object the weights in training."""

    def update(self, iteration: int) -> None:
        """Take in the weights after the optimizer's step of an iteration of the run (counted from 0)."""
        self._decay_now = warmed_up_decay(self._decay, iteration)
        self._average.update_parameters(self._network)

    def _mix(self, averages: Any, weights: Any, count: Any) -> None:
        get_ema_multi_avg_fn(self._decay_now)(averages, weights, count)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and weights in training, in place."""
        network = chain(self._network.parameters(), self._network.buffers())
        average = chain(self._average.module.parameters(), self._average.module.buffers())
        for ours, theirs in zip(network, average, strict=True):
            kept = ours.detach().clone()
            ours.copy_(theirs)
            theirs.copy_(kept)
        self.in_use = not self.in_use

    def other_weights(self) -> dict[str, torch.Tensor]:
        """State of whichever of the two the network does not hold now."""
        return dict(self._average.module.state_dict())
