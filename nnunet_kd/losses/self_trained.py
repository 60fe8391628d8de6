"""What an objective trains by itself, apart from the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class SelfTrained(nn.Module):
    """A module with an optimizer of its own, whose state is saved and restored with the module's.

    Its parameters do not require gradients outside of :meth:`minimise`, so that the student's optimizer and its
    synchronisation pass them by.

    Args:
        module: what is trained.
        learning_rate: of Adam.
    """

    def __init__(self, module: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self._optimizer = torch.optim.Adam(list(module.parameters()), lr=learning_rate)

    def forward(self, *arguments: Any) -> Any:
        """The module's own."""
        return self.module(*arguments)

    def minimise(self, loss: Callable[[], torch.Tensor]) -> None:
        """One step down ``loss``, which is called with gradients on; averaged over processes.

        Nothing happens if a gradient is not finite, in any process.
        """
        parameters = list(self.module.parameters())
        try:
            self.module.requires_grad_(True)
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(), parameters)
        finally:
            self.module.requires_grad_(False)
        if dist.is_available() and dist.is_initialized():
            gradients = tuple(gradient.contiguous() for gradient in gradients)
            for gradient in gradients:
                dist.all_reduce(gradient)
                gradient.div_(dist.get_world_size())
        if not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, which thereby becomes part of ``state_dict``."""
        return self._optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of :meth:`get_extra_state`; the learning rate stays the one given here."""
        self._optimizer.load_state_dict({**state, "param_groups": self._optimizer.state_dict()["param_groups"]})
