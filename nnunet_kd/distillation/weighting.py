"""Objectives in use, weighed and added: the one place where a distillation loss comes together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.errors import SettingsError


def sum_of(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """An objective's loss, from its terms (one or more)."""
    return torch.stack(list(terms.values())).sum()


class Distillation(nn.Module):
    """All objectives of a run with their weights and schedules.

    Its parameters are what the objectives learn. It is a module of its own, so that it can be synchronised between
    processes and saved beside the student, never inside it.

    Args:
        settings: of every objective in use, by name.
        networks: see :class:`~nnunet_kd.distillation.objectives.base.NetworkPair`.

    Raises:
        SettingsError: ``learns_at_full_weight`` for an objective that learns nothing.
    """

    def __init__(self, settings: Mapping[str, ObjectiveSettings], networks: NetworkPair) -> None:
        super().__init__()
        self._settings = dict(settings)
        self.objectives = nn.ModuleDict({name: OBJECTIVES[name](chosen, networks) for name, chosen in settings.items()})
        self._epoch = 0
        for name, chosen in settings.items():
            if chosen.learns_at_full_weight:
                self._learn_at_full_weight(name)

    def _learn_at_full_weight(self, name: str) -> None:
        """Undo the weight in the gradients of what an objective learns, which a small weight would slow down.

        Measured in docs/explanation-short-trainings.md.
        """
        learned = [parameter for parameter in self.objectives[name].parameters() if parameter.requires_grad]
        if not learned:
            raise SettingsError(
                f"objectives.{name}.learns_at_full_weight is set, but with these settings {name} learns nothing of its own. "
                f"Leave it out."
            )
        for parameter in learned:
            parameter.register_hook(partial(self._divided_by_weight, name))

    def _divided_by_weight(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / self.weight(name, self._epoch)

    def weight(self, name: str, epoch: int) -> float:
        """The weight of an objective in an epoch (counted from 0)."""
        return self._settings[name].full_weight() * self._settings[name].schedule.factor(epoch)

    def labels_weight(self, epoch: int, iteration: int) -> float:
        """What is left for nnU-Net's own loss of the labels: 1 less the weights that replace them."""
        replaced = (name for name, one in self.active(epoch, iteration).items() if one.replaces_labels)
        return 1.0 - sum(self.weight(name, epoch) for name in replaced)

    def active(self, epoch: int, iteration: int) -> dict[str, Objective]:
        """The objectives that count in this iteration (both from 0), by name; if there are none, the teacher need not run."""
        return {
            name: objective
            for name, objective in self.all_objectives().items()
            if self.weight(name, epoch) > 0 and iteration % self._settings[name].every == 0
        }

    @property
    def period(self) -> int:
        """After so many iterations every objective counts again; 1 without objectives."""
        return math.lcm(*(self._settings[name].every for name in self.all_objectives()))

    def feature_periods(self) -> set[int]:
        """In every how many iterations somebody reads the features of the teacher whose turn it is."""
        return {
            period
            for name, objective in self.all_objectives().items()
            if objective.needs_teacher_features or objective.explores
            for period in self._settings[name].periods
        }

    def all_objectives(self) -> dict[str, Objective]:
        """The objectives by name, whatever their weight."""
        objectives = {}
        for name, objective in self.objectives.items():
            assert isinstance(objective, Objective)
            objectives[name] = objective
        return objectives

    def forward(self, step: StepOutputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted loss, and every objective's unweighted loss and terms (``dcd``, ``dcd/stage0``, ...), detached.

        Objectives whose weight is zero in this epoch are not computed. Outside of autocast: objectives work in float32.
        """
        self._epoch = step.epoch
        total = step.student_logits.new_zeros(())
        log: dict[str, torch.Tensor] = {}
        for name in self.active(step.epoch, step.iteration):
            terms = self.terms(name, step)
            if not terms:
                continue
            loss = sum_of(terms)
            total = total + self.weight(name, step.epoch) * loss
            log[name] = loss.detach()
            log.update({f"{name}/{term}": value.detach() for term, value in terms.items()})
        return total, log

    def terms(self, name: str, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One objective's unweighted terms, whatever its weight; their sum is its loss. Empty: it has none yet."""
        with torch.autocast(step.student_logits.device.type, enabled=False):
            found: dict[str, torch.Tensor] = self.all_objectives()[name](step)
        return found

    def prepare(self, step: StepOutputs) -> bool:
        """Let objectives that have no loss yet explore once, whatever their weight; whether one still has none."""
        with torch.autocast(step.student_logits.device.type, enabled=False):
            for objective in self.all_objectives().values():
                if objective.is_preparing():
                    objective.explore(step.detached())
        return any(objective.is_preparing() for objective in self.all_objectives().values())

    def explore(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """Let objectives train what is theirs alone, after the student's step; returns values for the log."""
        log = {}
        with torch.autocast(step.student_logits.device.type, enabled=False):
            for name, objective in self.active(step.epoch, step.iteration).items():
                if objective.explores:
                    values = objective.explore(step.detached())
                    log.update({f"{name}_exploration/{key}": value.detach() for key, value in values.items()})
        return log
