"""Steps whose gradient nnU-Net made shorter: their share tells how large objectives and weights really are.

nnU-Net clips the student's gradient at a fixed norm. Beyond it, a larger weight turns the gradient, and makes it no longer.
"""

from __future__ import annotations

import torch
from torch import nn

from nnunet_kd.nnunet.training import CLIPPED_NORM

TOLERANCE = 1e-4
"""nnU-Net divides by a norm that it makes a little larger, and in float32: a clipped norm is this close to the limit."""


class ClippedSteps:
    """Looks at the student's gradient after nnU-Net clipped it, right before the optimizer's step.

    Nothing leaves the device before the epoch ends. Skipped steps do not count.

    Args:
        optimizer: the student's.
        network: whose parameters' gradients are clipped together; those of what objectives learn are not.

    Attributes:
        shares: per epoch, the share of its steps that were clipped, between 0 and 1; NaN where it is not known.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        self.shares: list[float] = []
        self._parameters = list(network.parameters())
        self._steps = 0
        self._clipped: torch.Tensor | None = None
        optimizer.register_step_pre_hook(lambda *_: self._look())

    def _look(self) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not gradients:  # taken away: the step is skipped
            return
        clipped = torch.nn.utils.get_total_norm(gradients) >= CLIPPED_NORM * (1 - TOLERANCE)
        self._steps += 1
        self._clipped = clipped.long() if self._clipped is None else self._clipped + clipped

    def close_epoch(self, epoch: int) -> float:
        """The epoch's share, also kept in :attr:`shares`; NaN without any step."""
        share = float("nan") if self._clipped is None else float(self._clipped) / self._steps
        self._steps, self._clipped = 0, None
        unknown = [float("nan")] * (epoch - len(self.shares))
        self.shares[epoch:] = [*unknown, share]
        return share
