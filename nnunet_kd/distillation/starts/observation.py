"""What is kept of a teacher that looks at patches: sampled voxels, and exact means and variances of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nnunet_kd.distillation.starts.channels import Covariance
from nnunet_kd.distillation.starts.steps import (
    TRANSPOSED,
    Bare,
    Join,
    Pair,
    Pool,
    Step,
    Unit,
    after_convolution,
    consume,
    paths,
    run,
)
from nnunet_kd.errors import PlanError, TeacherError

LEAST_SAMPLES, SAMPLES_PER_UNKNOWN = 16384, 8
"""Voxels that a layer's regression is given, where its patches have so many: the larger of the two numbers."""


@dataclass
class Observed:
    """What the teacher made of every patch at one step, on the CPU.

    Attributes:
        positions: per patch, the sampled places ``(n,)`` in the flattened output; of a :class:`~.steps.Bare` step, in its input.
        means, variances: per patch and channel ``(C,)``, over all voxels, of what the student's layer is fitted to.
        rows: per patch, at the sampled places ``(n, C)``: of a convolution with a norm, what the student's layer is fitted to; of
            a bare step its input; of a join what it hands on. What else is needed of a layer follows from these.
    """

    positions: list[torch.Tensor] = field(default_factory=list)
    means: list[torch.Tensor] = field(default_factory=list)
    variances: list[torch.Tensor] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)


class TeacherObserver:
    """Lets a teacher look at patches, one after the other.

    Args:
        pair: the steps.
        teacher: in evaluation mode.
        student: of which the shapes are read.
        patches: how many there will be.
        seed: of the sampled places.

    Attributes:
        observed: by the value that a step makes.
        covariances: by channel space.
    """

    def __init__(self, pair: Pair, teacher: nn.Module, student: nn.Module, patches: int, seed: int) -> None:
        self._pair, self._teacher = pair, teacher
        self._last_uses = pair.last_uses()
        self._per_patch = {
            step.target: math.ceil(_samples_wanted(step, student) / patches)
            for step in pair.steps
            if not isinstance(step, Pool)
        }
        self._patches = patches
        self._buffers: dict[str, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self.observed = {value: Observed() for value in self._per_patch}
        self.covariances: dict[str, Covariance] = {}

    def look(self, values: dict[str, torch.Tensor]) -> None:
        """At one patch: ``values`` holds the image ``(1, C, *spatial)``, and nothing at the end but the heads' values.

        Raises:
            PlanError: a layer has a single voxel.
            TeacherError: what a layer makes of it is not finite.
        """
        for place, step in enumerate(self._pair.steps):
            ended = self._last_uses.get(place, [])
            values[step.target] = self._observe(step, values, ended)
            for name in ended:
                values.pop(name, None)

    def _observe(self, step: Step, values: dict[str, torch.Tensor], ended: Sequence[str]) -> torch.Tensor:
        path = paths(step)[0]
        if isinstance(step, Pool) or (isinstance(step, Unit) and step.student is None):
            try:
                return run(step, self._teacher, path, values)
            except ValueError as error:
                if "spatial element" not in str(error):  # of PyTorch's instance norm
                    raise
                raise _one_voxel(step) from error
        if isinstance(step, Join):
            output = run(step, self._teacher, path, values)
            rows = rows_at(output[0].flatten(1), self._draw(step.target, output[0, 0].numel()))
            self._keep(step.target, rows)
            self._add_covariance(step.target, rows)
            return output
        if isinstance(step, Bare):
            output = run(step, self._teacher, path, values)
            self._keep_bare(step, values[step.source], output)
            return output
        unit: Any = None if path is None else self._teacher.get_submodule(path)
        target = consume(step, values, ended) if unit is None else unit.conv(consume(step, values, ended))
        if target[0, 0].numel() == 1:
            raise _one_voxel(step)
        positions = self._draw(step.target, target[0, 0].numel())
        if step.remainder_of is None:
            self._keep_target(step.target, target, positions)
        output = target if unit is None else after_convolution(unit, target)
        if step.remainder_of is not None:
            self._keep_target(step.target, output + values[step.remainder_of], positions)
        elif not step.summed:
            self._add_covariance(step.target, rows_at(output[0].flatten(1), positions))
        return output

    def _draw(self, value: str, voxels: int) -> torch.Tensor:
        """Sampled places of a patch, in ascending order; all of them where there are no more."""
        wanted = self._per_patch[value]
        if wanted >= voxels:
            positions = torch.arange(voxels)
        else:
            positions = torch.randperm(voxels, generator=self._generator)[:wanted].sort().values
        self.observed[value].positions.append(positions)
        return positions

    def _keep_target(self, value: str, target: torch.Tensor, positions: torch.Tensor) -> None:
        flat = target[0].flatten(1)
        variances, means = torch.var_mean(flat, 1, correction=0)
        if not (means.isfinite().all() and variances.isfinite().all()):
            raise TeacherError(
                f"the teacher's layer {value} gives values that are not finite on a training patch, so nothing can be inherited "
                f"from it. Look at its progress.png, and take another checkpoint or teacher."
            )
        kept = self.observed[value]
        kept.means.append(means.cpu())
        kept.variances.append(variances.cpu())
        self._keep(value, rows_at(flat, positions))

    def _keep_bare(self, step: Bare, inputs: torch.Tensor, output: torch.Tensor) -> None:
        positions = self._draw(step.target, inputs[0, 0].numel())
        self._keep(step.target, rows_at(inputs[0].flatten(1), positions))
        module: Any = self._teacher.get_submodule(step.path)
        made = children(output[0], module.kernel_size)[positions.to(output.device)].cpu()
        self._add_covariance(step.target, made.flatten(0, 1))

    def _keep(self, value: str, rows: torch.Tensor) -> None:
        """In one piece of memory for all patches: many small ones would keep what lies between them from being given back."""
        kept = self.observed[value].rows
        if value not in self._buffers:
            self._buffers[value] = rows.new_empty(self._patches, *rows.shape)
        kept.append(self._buffers[value][len(kept)].copy_(rows))

    def finish(self) -> dict[str, Observed]:
        """By the value that a step makes; what the caller takes out is freed."""
        self._buffers = {}
        return self.observed

    def _add_covariance(self, value: str, rows: torch.Tensor) -> None:
        space = self._pair.spaces[value]
        self.covariances.setdefault(space, Covariance(rows.shape[1])).add(rows)


def _samples_wanted(step: Step, student: nn.Module) -> int:
    path = paths(step)[1]
    if path is None or isinstance(step, (Join, Pool)):
        return LEAST_SAMPLES
    module: Any = student.get_submodule(path)
    if isinstance(step, Bare):
        return max(LEAST_SAMPLES, SAMPLES_PER_UNKNOWN * int(module.in_channels))
    return max(LEAST_SAMPLES, SAMPLES_PER_UNKNOWN * int(module.conv.weight[0].numel()))


def rows_at(flat: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``(C, voxels)`` at some places, as rows ``(n, C)`` on the CPU."""
    return flat[:, positions.to(flat.device)].T.contiguous().cpu()


def children(output: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """What a layer whose kernel is its stride makes of every input voxel.

    Args:
        output: ``(C, *spatial * kernel)``.
        kernel: its size.

    Returns:
        ``(voxels, K, C)`` for the ``K`` places of the kernel, in the order of the kernel's memory.
    """
    channels, dimensions = output.shape[0], len(kernel)
    spatial = [size // own for size, own in zip(output.shape[1:], kernel, strict=True)]
    apart = output.reshape(channels, *(size for both in zip(spatial, kernel, strict=True) for size in both))
    coarse_axes, kernel_axes = (range(first, 2 * dimensions + 1, 2) for first in (1, 2))
    return apart.permute(*coarse_axes, *kernel_axes, 0).reshape(math.prod(spatial), math.prod(kernel), channels)


def weights_of_bare(module: Any) -> torch.Tensor:
    """Weights of an up-convolution or a head as ``(inputs, K, outputs)``."""
    weight: torch.Tensor = module.weight
    if isinstance(module, TRANSPOSED):
        return weight.flatten(2).transpose(1, 2)
    return weight.flatten(2).permute(1, 2, 0)


def _one_voxel(step: Step) -> PlanError:
    return PlanError(f"{step.target} has one voxel, of which an instance norm is not defined")
