"""Which of the teacher's channels a student's stand for, and the weights that follow from that alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnunet_kd.distillation.starts.channels import Covariance, choose_channels, interpolation, selection
from nnunet_kd.distillation.starts.observation import weights_of_bare
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.steps import IMAGE, Bare, Pair, Unit, paths


class KeptChannels:
    """Of every channel space; chosen when it is made.

    Args:
        pair: the steps.
        teacher, student: their networks; of the student the widths are read.
        settings: see there.
        seed: of randomly chosen channels.
        covariances: of the teacher's activations, by channel space.
        image_channels: both networks' input channels, all of which are kept.
    """

    def __init__(
        self,
        pair: Pair,
        teacher: nn.Module,
        student: nn.Module,
        settings: InheritanceSettings,
        seed: int,
        covariances: Mapping[str, Covariance],
        image_channels: int,
    ) -> None:
        self._pair, self._teacher, self._student, self._prior = pair, teacher, student, settings.prior
        self._chosen = {IMAGE: torch.arange(image_channels)}
        self._inputs = {IMAGE: torch.eye(image_channels, dtype=torch.float64)}
        self._teacher_widths = {IMAGE: image_channels}
        for number, (space, covariance) in enumerate(covariances.items()):
            matrix = covariance.matrix()
            self._teacher_widths[space] = len(matrix)
            width = self._width(space)
            if space in pair.heads:
                self._chosen[space] = torch.arange(width)
                continue
            kept = choose_channels(matrix, width, settings.channels, seed + number)
            self._chosen[space] = kept
            interpolated = settings.prior == "interpolated"
            self._inputs[space] = interpolation(matrix, kept) if interpolated else selection(len(matrix), kept)

    def _width(self, space: str) -> int:
        """The student's channels, the same for all values of a space."""
        for step in self._pair.steps:
            if (
                self._pair.spaces[step.target] == space
                and isinstance(step, (Unit, Bare))
                and paths(step)[1] is not None
            ):
                module: Any = self._student.get_submodule(paths(step)[1] or "")
                return int((module.conv if isinstance(step, Unit) else module).out_channels)
        raise AssertionError(f"no layer of the student makes {space}")

    def of(self, value: str) -> torch.Tensor:
        """The teacher's channels that the student's stand for, in ascending order."""
        return self._chosen[self._pair.spaces[value]]

    def teacher_width(self, value: str) -> int:
        """How many channels the teacher has there."""
        return self._teacher_widths[self._pair.spaces[value]]

    def _inputs_of(self, values: Sequence[str]) -> torch.Tensor:
        """What the student's channels of values say of the teacher's, ``(teacher's channels, student's)``."""
        joined: torch.Tensor = torch.block_diag(*(self._inputs[self._pair.spaces[value]] for value in values))
        return joined

    def prior_of_unit(self, step: Unit, convolution: Any) -> torch.Tensor:
        """``W0 (inputs * kernel, outputs)`` of a student's convolution, float64: see ``prior`` in the settings."""
        outputs = self.of(step.target)
        if self._prior == "zero":
            return torch.zeros(convolution.weight[0].numel(), len(outputs), dtype=torch.float64)
        if step.teacher is None:  # the teacher hands its channels on as they are
            return self._inputs_of(step.sources)[outputs].T
        unit: Any = self._teacher.get_submodule(step.teacher)
        chosen = unit.conv.weight.cpu().double()[outputs].flatten(2)
        return torch.einsum("oik,ij->jko", chosen, self._inputs_of(step.sources)).flatten(0, 1)

    def prior_of_bare(self, step: Bare) -> torch.Tensor:
        """``W0 (inputs, K, outputs)`` of an up-convolution or a head, float64."""
        of_all_inputs = (
            weights_of_bare(self._teacher.get_submodule(step.path)).cpu().double()[:, :, self.of(step.target)]
        )
        prior = torch.einsum("iko,ij->jko", of_all_inputs, self._inputs_of([step.source]))
        return torch.zeros_like(prior) if self._prior == "zero" else prior
