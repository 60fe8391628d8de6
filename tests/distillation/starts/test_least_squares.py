"""Every layer against NumPy's least squares on the augmented system: all kinds of layers, the prior included."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from dynamic_network_architectures.building_blocks.residual import BottleneckD
from torch import nn

from nnunet_kd.distillation.starts.channels import RELATIVE_FLOOR
from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.layer_fit import LayerFit
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.pairing import pair
from nnunet_kd.distillation.starts.steps import (
    IMAGE,
    TRANSPOSED,
    Bare,
    Join,
    Step,
    Unit,
    joined_sources,
    paths,
    run,
)
from tests.distillation.starts.networks import PLAIN, RESIDUAL, images, network

RIDGE = 1e-2
Values = dict[str, torch.Tensor]


class Reference:
    """What the layers of a student must be, from what both networks make of the patches; slow and obvious."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        patches: Sequence[torch.Tensor],
        fits: Sequence[LayerFit],
        prior: str,
    ) -> None:
        self.pair, self.teacher, self.student, self.prior = pair(teacher, student), teacher, student, prior
        networks = (teacher.eval(), student.eval())
        self.theirs, self.ours = (
            [self._values(net, number, patch) for patch in patches] for number, net in enumerate(networks)
        )
        self.kept = {IMAGE: [0, 1], **{self.pair.spaces[fit.name]: list(fit.kept) for fit in fits}}

    @torch.no_grad()
    def _values(self, net: nn.Module, number: int, patch: torch.Tensor) -> Values:
        values = {IMAGE: patch}
        for step in self.pair.steps:
            values[step.target] = run(step, net, paths(step)[number], values)
        return values

    def kept_of(self, value: str) -> list[int]:
        return self.kept[self.pair.spaces[value]]

    def _said_of_inputs(self, value: str) -> np.ndarray:
        """``(teacher's channels, student's)``: least squares from the kept activations to all, all of them centred."""
        space, kept = self.pair.spaces[value], self.kept_of(value)
        if space == IMAGE:
            return np.eye(2)
        makers = [
            step
            for step in self.pair.steps
            if self.pair.spaces[step.target] == space
            and (isinstance(step, (Join, Bare)) or (isinstance(step, Unit) and step.student and not step.summed))
        ]
        rows = np.concatenate([_voxels(one[step.target]) for step in makers for one in self.theirs])
        if self.prior != "interpolated":
            return np.eye(rows.shape[1])[:, kept]
        centred = (rows - rows.mean(0)) / np.sqrt(len(rows))
        floor = RELATIVE_FLOOR * np.square(centred[:, kept]).sum() / len(kept)
        augmented = np.concatenate([centred[:, kept], np.sqrt(floor) * np.eye(len(kept))])
        said = np.linalg.lstsq(augmented, np.concatenate([centred, np.zeros((len(kept), rows.shape[1]))]), rcond=None)
        matrix = said[0].T
        matrix[kept] = np.eye(len(kept))
        return matrix

    def prior_of(self, step: Step) -> np.ndarray:
        """Of a unit ``(inputs * kernel, outputs)``, of a bare step ``(inputs, K, outputs)``."""
        outputs = self.kept_of(step.target)
        values = step.sources if isinstance(step, Unit) else (step.source,)
        said = scipy.linalg.block_diag(*(self._said_of_inputs(value) for value in values))
        if isinstance(step, Unit) and step.teacher is None:
            made = said[outputs].T
        elif isinstance(step, Unit):
            kernel = self.teacher.get_submodule(step.teacher).conv.weight.detach()[outputs].flatten(2).numpy()
            made = np.stack([said.T @ kernel[..., place].T for place in range(kernel.shape[2])], 1)
            made = made.reshape(-1, len(outputs))
        else:
            kernel = _bare_weights(self.teacher.get_submodule(step.path))[..., outputs]
            made = np.stack([said.T @ kernel[:, place] for place in range(kernel.shape[1])], 1)
        return made if self.prior != "zero" else np.zeros_like(made)

    def check_unit(self, step: Unit) -> None:
        unit: Any = self.student.get_submodule(step.student)
        outputs, prior = self.kept_of(step.target), self.prior_of(step)
        rows, wanted, means, variances = [], [], [], []
        for theirs, ours in zip(self.theirs, self.ours, strict=True):
            inputs = joined_sources(step, theirs)
            if step.remainder_of is not None:  # what the student's own skip leaves of the teacher's sum
                left = theirs[step.target] + theirs[step.remainder_of]
                values = _voxels(left)[:, outputs] - _voxels(ours[step.remainder_of])
            elif step.teacher is None:
                values = _voxels(inputs)[:, outputs]
            else:
                values = _voxels(self.teacher.get_submodule(step.teacher).conv(inputs).detach())[:, outputs]
            windows = _windows(unit.conv, joined_sources(step, ours))
            means.append(values.mean(0))
            variances.append(values.var(0))
            weight = 1 / np.sqrt(values.var(0).mean())
            rows.append(weight * (windows - windows.mean(0)))
            wanted.append(weight * (values - values.mean(0)))
        design = np.concatenate(rows)
        penalty = np.sqrt(RIDGE * np.square(design).sum() / design.shape[1])
        augmented = np.concatenate([design, penalty * np.eye(design.shape[1])])
        expected = np.linalg.lstsq(augmented, np.concatenate([*wanted, penalty * prior]), rcond=None)[0]
        _equal(unit.conv.weight.detach().flatten(1).T.numpy(), expected, step)
        if step.remainder_of is not None or step.teacher is None:
            scale, shift = np.sqrt(np.mean(variances, 0)), np.mean(means, 0)
        else:
            norm = self.teacher.get_submodule(step.teacher).norm
            scale, shift = norm.weight.detach()[outputs].numpy(), norm.bias.detach()[outputs].numpy()
        _equal(unit.norm.weight.detach().numpy(), scale, step)
        _equal(unit.norm.bias.detach().numpy(), shift, step)

    def check_bare(self, step: Bare) -> None:
        """All places of a kernel in one system, with one intercept where the student has a bias."""
        module: Any = self.student.get_submodule(step.path)
        outputs, prior, kernel = self.kept_of(step.target), self.prior_of(step), module.kernel_size
        features = np.concatenate([_voxels(one[step.source]) for one in self.ours])
        penalty = np.sqrt(RIDGE * np.square(features - features.mean(0)).sum() / features.shape[1])
        places, (count, channels) = list(itertools.product(*map(range, kernel))), features.shape
        design = np.zeros((len(places) * (count + channels), len(places) * channels + 1))
        wanted = np.zeros((len(design), len(outputs)))
        for number, place in enumerate(places):
            rows = slice(number * count, (number + 1) * count)
            columns = slice(number * channels, (number + 1) * channels)
            design[rows, columns], design[rows, -1] = features, 1
            window = (..., *(slice(start, None, size) for start, size in zip(place, kernel, strict=True)))
            wanted[rows] = np.concatenate([_voxels(one[step.target][window])[:, outputs] for one in self.theirs])
            below = slice(len(places) * count + columns.start, len(places) * count + columns.stop)
            design[below, columns], wanted[below] = penalty * np.eye(channels), penalty * prior[:, number]
        found = _bare_weights(module).transpose(1, 0, 2).reshape(-1, len(outputs))
        if module.bias is None:
            design = design[:, :-1]
        else:
            found = np.concatenate([found, module.bias.detach().numpy()[None]])
        _equal(found, np.linalg.lstsq(design, wanted, rcond=None)[0], step)


def _voxels(value: torch.Tensor) -> np.ndarray:
    """``(1, C, *spatial)`` as rows ``(voxels, C)``."""
    return value[0].flatten(1).T.numpy()


def _windows(convolution: Any, image: torch.Tensor) -> np.ndarray:
    """What a convolution reads, ``(voxels, C * kernel)``."""
    padded = np.pad(image[0].numpy(), [(0, 0), *((amount, amount) for amount in convolution.padding)])
    axes = tuple(range(1, padded.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, convolution.kernel_size, axis=axes)
    windows = windows[(slice(None), *(slice(None, None, stride) for stride in convolution.stride))]
    return np.moveaxis(windows, 0, len(axes)).reshape(-1, len(padded) * int(np.prod(convolution.kernel_size)))


def _bare_weights(module: Any) -> np.ndarray:
    """``(inputs, K, outputs)``."""
    weight = module.weight.detach().flatten(2)
    return (weight if isinstance(module, TRANSPOSED) else weight.transpose(0, 1)).permute(0, 2, 1).numpy()


def _equal(found: np.ndarray, expected: np.ndarray, step: Step) -> None:
    assert found.shape == expected.shape, step
    assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max(), step


def _bottlenecks(*channels: int) -> dict[str, Any]:
    return {"block": BottleneckD, "bottleneck_channels": list(channels)}


WIDE, NARROW = {"features": (4, 6, 8, 8)}, {"features": (2, 3, 4, 4)}
KINDS = {
    "plain-3d": (PLAIN, 3, WIDE, NARROW),
    "plain-2d": (PLAIN, 2, WIDE, NARROW),
    "plain-2d-without-bias": (PLAIN, 2, {**WIDE, "bias": False}, {**NARROW, "bias": False}),
    "plain-2d-bias-in-the-teacher-only": (PLAIN, 2, WIDE, {**NARROW, "bias": False}),
    "plain-2d-bias-in-the-student-only": (PLAIN, 2, {**WIDE, "bias": False}, NARROW),
    "residual-3d-joined-stages": (RESIDUAL, 3, {"features": (4, 4, 8, 8)}, {"features": (2, 2, 4, 4)}),
    "residual-2d-stem": (RESIDUAL, 2, {**WIDE, "stem_channels": 6}, {**NARROW, "stem_channels": 3}),
    "residual-2d-projection-in-the-teacher-only": (RESIDUAL, 2, WIDE, {"features": (3, 3, 4, 4)}),
    "residual-2d-projection-in-the-student-only": (RESIDUAL, 2, {"features": (6, 6, 8, 8)}, NARROW),
    "residual-2d-bottlenecks": (
        RESIDUAL,
        2,
        {**WIDE, **_bottlenecks(3, 3, 4, 4)},
        {**NARROW, **_bottlenecks(2, 2, 2, 3)},
    ),
}


@pytest.mark.parametrize(
    ("name", "prior"),
    [*((name, "interpolated") for name in KINDS), ("plain-3d", "teacher"), ("residual-2d-stem", "zero")],
)
def test_every_layer_is_the_least_squares_solution(name: str, prior: Any) -> None:
    kind, dimensions, wide, narrow = KINDS[name]
    torch.manual_seed(1)
    teacher, student = network(kind, dimensions=dimensions, **wide), network(kind, dimensions=dimensions, **narrow)
    settings = InheritanceSettings(ridge=RIDGE, rescale=False, heads="logits", prior=prior)
    patches = images(3, dimensions)
    fits = inherit(teacher, student, patches, settings)
    reference = Reference(teacher, student, patches, fits, prior)
    units = [step for step in reference.pair.steps if isinstance(step, Unit) and step.student is not None]
    for step in units:
        reference.check_unit(step)
    for step in reference.pair.steps:
        if isinstance(step, Bare):
            reference.check_bare(step)
    assert {step.student for step in units} == {
        path for path, module in student.named_modules() if type(module).__name__ == "ConvDropoutNormReLU"
    }
    if dimensions == 3:  # both ways to solve the system
        assert {fit.samples < fit.unknowns for fit in fits if fit.unknowns} == {True, False}
    if "projection" in name:
        assert any(step.remainder_of for step in units)


@pytest.mark.parametrize("prior", ["teacher", "interpolated"])
def test_without_a_refit_every_layer_has_the_weights_of_the_prior(prior: Any) -> None:
    torch.manual_seed(2)
    kind, dimensions, wide, narrow = KINDS["residual-2d-projection-in-the-student-only"]
    teacher, student = network(kind, dimensions=dimensions, **wide), network(kind, dimensions=dimensions, **narrow)
    patches = images(2, dimensions)
    fits = inherit(teacher, student, patches, InheritanceSettings(refit=False, rescale=False, prior=prior))
    reference = Reference(teacher, student, patches, fits, prior)
    for step in reference.pair.steps:
        if isinstance(step, Unit) and step.student is not None:
            found = student.get_submodule(step.student).conv.weight.detach().flatten(1).T.numpy()
            _equal(found, reference.prior_of(step), step)
        elif isinstance(step, Bare):
            module: Any = student.get_submodule(step.path)
            _equal(_bare_weights(module), reference.prior_of(step), step)
            bias = teacher.get_submodule(step.path).bias.detach().numpy()
            _equal(module.bias.detach().numpy(), bias[reference.kept_of(step.target)], step)


def test_what_few_voxels_say_nothing_of_stays_as_the_teacher_has_it() -> None:
    torch.manual_seed(3)
    teacher = network(**WIDE)
    few = [image[:, :, :8, :8, :8].contiguous() for image in images(2)]
    fitted, unfitted = network(**NARROW), network(**NARROW)
    fits = {fit.name: fit for fit in inherit(teacher, fitted, few, InheritanceSettings(rescale=False))}
    inherit(teacher, unfitted, few, InheritanceSettings(rescale=False, refit=False))
    reference = Reference(teacher, fitted, few, list(fits.values()), "teacher")
    for name in ("encoder.stages.3.0.convs.0", "encoder.stages.3.0.convs.1"):
        assert fits[name].samples == 4  # for 108 unknowns
        (step,) = [step for step in reference.pair.steps if step.target == name]
        convolution: Any = fitted.get_submodule(name).conv
        windows = [_windows(convolution, joined_sources(step, ours)) for ours in reference.ours]
        seen = np.concatenate([one - one.mean(0) for one in windows])
        weight, prior = (
            net.get_submodule(name).conv.weight.detach().flatten(1).T.numpy() for net in (fitted, unfitted)
        )
        unseen = np.eye(len(prior)) - np.linalg.pinv(seen, rcond=1e-9) @ seen
        assert np.linalg.norm(unseen @ prior) > 0.5 * np.linalg.norm(prior)
        assert np.linalg.norm(unseen @ (weight - prior)) < 1e-9 * np.linalg.norm(prior)
        assert np.linalg.norm(weight - prior) > 1e-3 * np.linalg.norm(prior)
