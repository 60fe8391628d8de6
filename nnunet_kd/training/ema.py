"""The exponentially averaged student (EMA)."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class StudentAverage:
    """Average of a student's weights over iterations, exchangeable with the weights in training.

    Args:
        network: the plain student, without DDP, compile or hooks around it.
        decay: share of the old average kept in every iteration.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._average.update_parameters(network)  # the first update copies
        self.in_use = False
        """Whether the network currently holds the average, and this object the weights in training."""

    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self._average.update_parameters(self._network)

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
