"""Objectives in use, weighed and added: the one place where a distillation loss comes together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nnunet_kd.objectives import OBJECTIVES
from nnunet_kd.objectives.base import NetworkPair, ObjectiveSettings, StepOutputs


class Distillation(nn.Module):
    """All objectives of a run with their weights and schedules.

    Its parameters are what the objectives learn. It is a module of its own, so that it can be synchronised between
    processes and saved beside the student, never inside it.

    Args:
        settings: of every objective in use, by name.
        networks: see :class:`~nnunet_kd.objectives.base.NetworkPair`.
    """

    def __init__(self, settings: Mapping[str, ObjectiveSettings], networks: NetworkPair) -> None:
        super().__init__()
        self._settings = dict(settings)
        self.objectives = nn.ModuleDict({name: OBJECTIVES[name](chosen, networks) for name, chosen in settings.items()})

    def weight(self, name: str, epoch: int) -> float:
        """The weight of an objective in an epoch (counted from 0)."""
        return self._settings[name].weight * self._settings[name].schedule.factor(epoch)

    def active(self, epoch: int) -> bool:
        """Whether any objective counts in this epoch; if not, the teacher need not run."""
        return any(self.weight(name, epoch) > 0 for name in self.objectives)

    def forward(self, step: StepOutputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted loss, and every objective's unweighted loss and terms (``dcd``, ``dcd/stage0``, ...), detached.

        Objectives whose weight is zero in this epoch are not computed.
        """
        total = torch.zeros((), device=step.student_features[0].device)
        log: dict[str, torch.Tensor] = {}
        for name, objective in self.objectives.items():
            weight = self.weight(name, step.epoch)
            if weight == 0:
                continue
            terms = objective(step)
            loss = torch.stack(list(terms.values())).sum()
            total = total + weight * loss
            log[name] = loss.detach()
            log.update({f"{name}/{term}": value.detach() for term, value in terms.items()})
        return total, log
