"""Steps whose loss or gradient is not finite: skipped, counted, and the end of a training if they do not stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from nnunet_kd.training.distributed import gather


def nan_unless_finite(loss: torch.Tensor) -> torch.Tensor:
    """The loss itself, bit for bit; if it is not finite, one whose every gradient is not a number.

    Gradients are averaged over processes, so that all of them see it and skip the same step, without a message exchanged.
    """
    factor, not_a_number = torch.ones_like(loss), torch.full_like(loss, torch.nan)
    return loss * torch.where(loss.detach().isfinite(), factor, not_a_number)


class SkippedSteps:
    """Keeps gradients that are not finite out of the weights, and remembers what they came from.

    With mixed precision the gradient scaler skips such steps. Without one, every gradient is taken away before the optimizer's
    step, which then changes neither weights nor momentum.

    Args:
        optimizer: the student's, with everything that objectives learn.
        scaler: nnU-Net's gradient scaler, if there is one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
        self._scaler = scaler
        self._scale = 0.0
        self._taken_away = False
        self.consecutive = 0
        """Skipped steps since the last one that was taken."""
        self.taken = 0
        """Steps since the start of this process that changed the weights."""
        self._reasons: Counter[str] = Counter()
        self._last: dict[str, Any] = {}
        if scaler is None:
            optimizer.register_step_pre_hook(self._take_away)

    def _take_away(self, optimizer: torch.optim.Optimizer, args: Any, options: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients and not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            self._taken_away = True
            optimizer.zero_grad(set_to_none=True)

    def start_step(self) -> None:
        """Before nnU-Net's training step."""
        self._taken_away = False
        self._scale = 0.0 if self._scaler is None else self._scaler.get_scale()

    def finish_step(self, terms: Mapping[str, torch.Tensor], cases: list[str]) -> bool:
        """After nnU-Net's training step; returns whether it was skipped, which is the same in all processes.

        Args:
            terms: the step's loss terms, ``segmentation``, ``dcd``, ``dcd/stage0``, ...
            cases: the batch's case names.
        """
        skipped = self._taken_away if self._scaler is None else self._scaler.get_scale() < self._scale
        if not skipped:
            self.consecutive, self.taken = 0, self.taken + 1
            return False
        self.consecutive += 1
        wrong = [name for name, value in terms.items() if not bool(value.isfinite())]
        parts = [name for name in wrong if "/" in name or not any(other.startswith(f"{name}/") for other in wrong)]
        reason = ", ".join(parts) or "the gradient alone"
        self._reasons[reason] += 1
        self._last = {"cases": cases, "reason": reason}
        return True

    def close_epoch(self) -> tuple[int, str]:
        """How many steps of the epoch were skipped in this process, and why, for the log."""
        count = self._reasons.total()
        why = "; ".join(f"{reason} ({times})" for reason, times in self._reasons.most_common())
        self._reasons = Counter()
        return count, why

    def describe_last(self) -> str:
        """What the last skipped step came from, in all processes; all of them must call it."""
        everyone = gather(self._last)
        causes = [last for last in everyone if last["reason"] != "the gradient alone"] or everyone
        reasons = ", ".join(dict.fromkeys(last["reason"] for last in causes))
        cases = ", ".join(dict.fromkeys(case for last in causes for case in last["cases"]))
        return f"{reasons}, in a batch of {cases or 'unnamed cases'}"
