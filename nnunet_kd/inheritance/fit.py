"""A student's weights, fitted front to back to what its teacher makes of the same patches.

Every layer is fitted from the *student's* own inputs to the *teacher's* outputs at the channels that the student stands for,
so that it mends what the layers before it lost. The method and its sources: docs/explanation-inheritance.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnunet_kd.errors import PlanError, TeacherError
from nnunet_kd.inheritance.channels import choose_channels
from nnunet_kd.inheritance.convolution_inputs import ConvolutionInputs
from nnunet_kd.inheritance.observation import Observed, TeacherObserver, children, prior_of_bare, rows_at
from nnunet_kd.inheritance.options import InheritanceSettings
from nnunet_kd.inheritance.regression import CentredRegression, InterceptRegression
from nnunet_kd.inheritance.steps import (
    IMAGE,
    TRANSPOSED,
    Bare,
    Pair,
    Pool,
    Step,
    Unit,
    joined_sources,
    pair,
    paths,
    run,
)

Progress = Callable[[int, int, str], None]
"""Told how many of how many parts are done, and what is done next."""

SMALLEST_VARIANCE = 1e-12
"""An instance whose layer varies less than this share of the most varying one says nothing and is left out."""


@dataclass(frozen=True)
class LayerFit:
    """How well a layer of the student stands for its teacher's.

    Attributes:
        name: path of the layer.
        channels, teacher_channels: of its output.
        unknowns, samples: weights per output channel, and voxels that they were fitted to.
        unexplained: share of the teacher's signal at the chosen channels, behind norm and activation, that is left.
    """

    name: str
    channels: int
    teacher_channels: int
    unknowns: int
    samples: int
    unexplained: float


def inherit(
    teacher: nn.Module,
    student: nn.Module,
    patches: Sequence[torch.Tensor],
    settings: InheritanceSettings,
    seed: int = 0,
    progress: Progress = lambda done, of, what: None,
) -> list[LayerFit]:
    """Overwrite a student's weights by what can be computed from its teacher's.

    Args:
        teacher, student: plain modules on one device, of one dtype.
        patches: at least one image ``(1, C, *spatial)`` on the CPU, of the networks' dtype.
        settings: see there.
        seed: of sampled voxels, and of randomly chosen channels.
        progress: see :data:`Progress`.

    Returns:
        One entry per layer with weights and per residual block, in the order of computation.

    Raises:
        PlanError: the networks are of a kind that is not supported, or differ in more than their channels.
        TeacherError: the teacher's weights, or what it makes of a patch, are not finite.
    """
    steps = pair(teacher, student)
    _check_finite(teacher)
    with _evaluated(teacher, student), torch.no_grad(), _exact_convolutions():
        inheritance = _Inheritance(steps, teacher, student, settings, seed)
        total = len(patches) + len(steps.steps)
        observer = TeacherObserver(steps, teacher, student, len(patches), seed)
        device = next(teacher.parameters()).device
        for number, patch in enumerate(patches):
            progress(number, total, "the teacher looks at patches")
            values = {IMAGE: patch.to(device)}
            observer.look(values)
            if number == 0:
                _check_steps(teacher, patch.to(device), values[steps.heads[-1]])
        inheritance.choose(observer, patches[0].shape[1])
        return inheritance.fit_all(observer, [patch.to(device) for patch in patches], progress, len(patches), total)


def _check_finite(teacher: nn.Module) -> None:
    broken = [name for name, weight in teacher.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise TeacherError(
            f"the teacher holds weights that are not finite ({', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}), so "
            f"nothing can be inherited from it. Its training diverged: take another checkpoint or teacher."
        )


def _check_steps(teacher: nn.Module, patch: torch.Tensor, logits: torch.Tensor) -> None:
    """The steps are a reading of the network's parts; that the network computes just them is checked on a patch."""
    output = teacher(patch)
    finest = output[0] if isinstance(output, (list, tuple)) else output
    scale = float(finest.abs().max())
    if finest.shape != logits.shape or float((finest - logits).abs().max()) > 1e-3 * scale:
        raise PlanError(f"the teacher's network {type(teacher).__name__} computes something else than its known parts")


@contextlib.contextmanager
def _evaluated(*networks: nn.Module) -> Iterator[None]:
    training = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, before in zip(networks, training, strict=True):
            network.train(before)


def _exact_convolutions() -> contextlib.AbstractContextManager[Any]:
    """On a GPU: float32 as it is on a CPU, and the same from run to run."""
    context: contextlib.AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )
    return context


class _Inheritance:
    """The student as far as it is built."""

    def __init__(
        self, steps: Pair, teacher: nn.Module, student: nn.Module, settings: InheritanceSettings, seed: int
    ) -> None:
        self._pair, self._teacher, self._student = steps, teacher, student
        self._settings, self._seed = settings, seed
        self._chosen: dict[str, torch.Tensor] = {}
        self._teacher_widths: dict[str, int] = {}

    def choose(self, observer: TeacherObserver, image_channels: int) -> None:
        """The teacher's channels that the student stands for, in every channel space."""
        self._chosen[IMAGE] = torch.arange(image_channels)
        self._teacher_widths[IMAGE] = image_channels
        for number, (space, covariance) in enumerate(observer.covariances.items()):
            matrix = covariance.matrix()
            self._teacher_widths[space] = len(matrix)
            width = self._width(space)
            if space in self._pair.heads:
                if width != len(matrix):
                    raise PlanError(f"{space} has {len(matrix)} outputs in the teacher and {width} in the student")
                self._chosen[space] = torch.arange(width)
                continue
            if width > len(matrix):
                raise PlanError(f"{space} has {len(matrix)} channels in the teacher, but {width} in the student")
            self._chosen[space] = choose_channels(matrix, width, self._settings.channels, self._seed + number)

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

    def _chosen_of(self, values: Sequence[str]) -> torch.Tensor:
        """Of values put one behind the other: the chosen channels' numbers in the teacher's."""
        numbers, before = [], 0
        for value in values:
            space = self._pair.spaces[value]
            numbers.append(self._chosen[space] + before)
            before += self._teacher_widths[space]
        return torch.cat(numbers)

    # fitting ----------------------------------------------------------------------------------------------------------

    def fit_all(
        self, observer: TeacherObserver, images: list[torch.Tensor], progress: Progress, done: int, total: int
    ) -> list[LayerFit]:
        """Every layer in turn, each followed by what the student then makes of all patches."""
        values = [{IMAGE: image} for image in images]
        last_uses = self._pair.last_uses()
        fits = []
        for place, step in enumerate(self._pair.steps):
            progress(done + place, total, step.target)
            observed = observer.observed.pop(step.target, Observed())
            path = paths(step)[1]
            unknowns = 0
            if isinstance(step, Unit) and path is not None:
                unknowns = self._fit_unit(step, observed, values)
            elif isinstance(step, Bare):
                unknowns = self._fit_bare(step, observed, values)
            for patch in values:
                patch[step.target] = run(step, self._student, path, patch)
            if not isinstance(step, Pool) and (observed.outputs or isinstance(step, Bare)):
                fits.append(self._compare(step, observed, values, unknowns))
            for patch in values:
                for name in last_uses.get(place, []):
                    del patch[name]
        progress(total, total, "done")
        return fits

    def _fit_unit(self, step: Unit, observed: Observed, values: list[dict[str, torch.Tensor]]) -> int:
        unit: Any = self._student.get_submodule(step.student or "")
        convolution, kept = unit.conv, self._chosen_of([step.target])
        prior = self._prior_of_unit(step, convolution)
        random_norm = convolution.weight.norm()
        targets, means, variances = (
            [rows[..., kept].double() for rows in each]
            for each in (observed.targets, observed.means, observed.variances)
        )
        if step.remainder_of is not None:
            for number, patch in enumerate(values):
                skipped = patch[step.remainder_of][0].flatten(1)
                targets[number] -= rows_at(skipped, observed.positions[number]).double()
                means[number] -= skipped.mean(1).double().cpu()
                variances[number] = (targets[number] - means[number]).square().mean(0)
        weights = self._instance_weights(variances)
        weight = prior
        if self._settings.refit:
            samples = sum(len(rows) for rows in targets)
            regression = CentredRegression(len(prior), len(kept), samples, self._settings.ridge)
            for patch, positions, target, mean, importance in zip(
                values, observed.positions, targets, means, weights, strict=True
            ):
                inputs = ConvolutionInputs(convolution, joined_sources(step, patch))
                rows = inputs.at(positions).double().cpu() - inputs.mean().double().cpu()
                regression.add(rows, target - mean - rows @ prior, importance)
            weight = prior + regression.solve()
        self._write(convolution, weight.T.reshape(convolution.weight.shape), None)
        if self._settings.rescale and convolution.weight.norm() > 0:
            convolution.weight.mul_(random_norm / convolution.weight.norm())
        self._write_norm(step, unit.norm, kept, means, variances)
        return len(prior)

    def _prior_of_unit(self, step: Unit, convolution: Any) -> torch.Tensor:
        """``(inputs * kernel, outputs)``, float64: the teacher's kernel at the chosen channels, or zero."""
        outputs, inputs = self._chosen_of([step.target]), self._chosen_of(step.sources)
        if self._settings.prior == "zero" and self._settings.refit:
            return torch.zeros(convolution.weight[0].numel(), len(outputs), dtype=torch.float64)
        if step.teacher is None:  # the teacher hands its channels on as they are
            same = outputs[:, None] == inputs
            return same.double().T
        unit: Any = self._teacher.get_submodule(step.teacher)
        chosen: torch.Tensor = unit.conv.weight.double().cpu()[outputs][:, inputs]
        return chosen.flatten(1).T

    def _instance_weights(self, variances: list[torch.Tensor]) -> list[float]:
        """``1 / v_b``; 0 for patches in which the layer is constant."""
        means = [float(variance.mean()) for variance in variances]
        least = SMALLEST_VARIANCE * max(means)
        return [1 / mean if mean > least else 0.0 for mean in means]

    def _write_norm(
        self, step: Unit, norm: Any, kept: torch.Tensor, means: list[torch.Tensor], variances: list[torch.Tensor]
    ) -> None:
        """The teacher's scale and shift; where its layer has another target, those that the target has."""
        if not norm.affine:
            return
        if step.teacher is None or step.remainder_of is not None:
            scale, shift = torch.stack(variances).mean(0).sqrt(), torch.stack(means).mean(0)
        else:
            of_teacher: Any = self._teacher.get_submodule(step.teacher)
            if not of_teacher.norm.affine:
                return
            scale, shift = of_teacher.norm.weight[kept], of_teacher.norm.bias[kept]
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)

    def _fit_bare(self, step: Bare, observed: Observed, values: list[dict[str, torch.Tensor]]) -> int:
        module: Any = self._student.get_submodule(step.path)
        of_teacher: Any = self._teacher.get_submodule(step.path)
        kept, inputs_kept = self._chosen_of([step.target]), self._chosen_of([step.source])
        prior = prior_of_bare(of_teacher).double().cpu()[inputs_kept][:, :, kept]
        bias = torch.zeros(len(kept), dtype=torch.float64)
        if of_teacher.bias is not None:
            bias = of_teacher.bias.double().cpu()[kept]
        if self._settings.refit:
            if self._settings.prior == "zero":
                prior = torch.zeros_like(prior)
            unknowns, places, outputs = prior.shape
            regression = InterceptRegression(
                unknowns, places, outputs, self._settings.ridge, intercept=module.bias is not None
            )
            for patch, positions, target in zip(values, observed.positions, observed.targets, strict=True):
                rows = rows_at(patch[step.source][0].flatten(1), positions).double()
                explained = torch.einsum("np,pkq->nkq", rows, prior) + bias
                regression.add(rows, target[..., kept].double() - explained)
            differences, shift = regression.solve()
            prior, bias = prior + differences, bias + shift
        weight = prior.permute(0, 2, 1) if isinstance(module, TRANSPOSED) else prior.permute(2, 0, 1)
        self._write(module, weight.reshape(module.weight.shape), bias)
        return len(prior)

    def _write(self, module: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if not weight.isfinite().all():
            raise TeacherError("the fit of a layer gave weights that are not finite; raise inheritance.ridge")
        module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.zero_() if bias is None else module.bias.copy_(bias)

    def _compare(
        self, step: Step, observed: Observed, values: list[dict[str, torch.Tensor]], unknowns: int
    ) -> LayerFit:
        kept = self._chosen_of([step.target])
        bare = isinstance(step, Bare)
        teachers = [rows[..., kept].double() for rows in (observed.targets if bare else observed.outputs)]
        left = signal = 0.0
        mean = torch.cat(teachers).flatten(0, -2).mean(0)
        for patch, positions, expected in zip(values, observed.positions, teachers, strict=True):
            output = patch[step.target][0]
            if isinstance(step, Bare):
                made = children(output, patch[step.source].shape[2:])[positions.to(output.device)].cpu()
            else:
                made = rows_at(output.flatten(1), positions)
            left += float((made.double() - expected).square().sum())
            signal += float((expected - mean).square().sum())
        return LayerFit(
            name=step.target,
            channels=len(kept),
            teacher_channels=self._teacher_widths[self._pair.spaces[step.target]],
            unknowns=unknowns,
            samples=sum(map(len, teachers)),
            unexplained=left / signal if signal > 0 else 0.0,
        )
