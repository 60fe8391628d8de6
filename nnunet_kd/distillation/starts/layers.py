"""One layer of a student after the other, fitted to what the teacher's layer makes of the same patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_kd.distillation.starts.channels import choose_channels, interpolation, selection
from nnunet_kd.distillation.starts.convolution_inputs import ConvolutionInputs
from nnunet_kd.distillation.starts.heads import fit_probabilities
from nnunet_kd.distillation.starts.layer_fit import LayerFit, Progress
from nnunet_kd.distillation.starts.observation import Observed, TeacherObserver, children, rows_at, weights_of_bare
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.regression import CentredRegression, InterceptRegression
from nnunet_kd.distillation.starts.steps import (
    IMAGE,
    TRANSPOSED,
    Bare,
    Join,
    Pair,
    Step,
    Unit,
    after_convolution,
    consume,
    joined_sources,
    paths,
    run,
)
from nnunet_kd.errors import TeacherError

ROWS = 2048
"""Of a regression that are held at once."""
SMALLEST_VARIANCE = 1e-12
"""An instance whose layer varies less than this share of the most varying one says nothing and is left out."""


class StudentLayers:
    """The student as far as it is built."""

    def __init__(
        self,
        steps: Pair,
        teacher: nn.Module,
        student: nn.Module,
        settings: InheritanceSettings,
        seed: int,
        regions: bool,
    ) -> None:
        self._pair, self._teacher, self._student = steps, teacher, student
        self._settings, self._seed, self._regions = settings, seed, regions
        self._chosen: dict[str, torch.Tensor] = {}
        self._inputs: dict[str, torch.Tensor] = {}
        self._teacher_widths: dict[str, int] = {}

    def choose(self, observer: TeacherObserver, image_channels: int) -> None:
        """The teacher's channels that the student stands for, in every channel space."""
        self._chosen[IMAGE] = torch.arange(image_channels)
        self._inputs[IMAGE] = torch.eye(image_channels, dtype=torch.float64)
        self._teacher_widths[IMAGE] = image_channels
        for number, (space, covariance) in enumerate(observer.covariances.items()):
            matrix = covariance.matrix()
            self._teacher_widths[space] = len(matrix)
            width = self._width(space)
            if space in self._pair.heads:
                self._chosen[space] = torch.arange(width)
                continue
            kept = choose_channels(matrix, width, self._settings.channels, self._seed + number)
            self._chosen[space] = kept
            interpolated = self._settings.prior == "interpolated"
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

    def _chosen_of(self, value: str) -> torch.Tensor:
        """Which of the teacher's channels the student's stand for."""
        return self._chosen[self._pair.spaces[value]]

    def _inputs_of(self, values: Sequence[str]) -> torch.Tensor:
        """What the student's channels of values say of the teacher's, ``(teacher's channels, student's)``."""
        joined: torch.Tensor = torch.block_diag(*(self._inputs[self._pair.spaces[value]] for value in values))
        return joined

    # fitting ----------------------------------------------------------------------------------------------------------

    def fit_all(
        self, observer: TeacherObserver, images: list[torch.Tensor], progress: Progress, done: int, total: int
    ) -> list[LayerFit]:
        """Every layer in turn, each followed by what the student then makes of all patches."""
        shown = observer.finish()
        values = [{IMAGE: image} for image in images]
        last_uses = self._pair.last_uses()
        fits = []
        for place, step in enumerate(self._pair.steps):
            progress(done + place, total, step.target)
            observed, ended = shown.pop(step.target, Observed()), last_uses.get(place, [])
            path = paths(step)[1]
            unknowns = 0
            if isinstance(step, Unit) and path is not None:
                unknowns = self._fit_unit(step, observed, values, ended)
            else:
                if isinstance(step, Bare):
                    unknowns = self._fit_bare(step, observed, values)
                for patch in values:
                    patch[step.target] = run(step, self._student, path, patch)
                    for name in ended:
                        patch.pop(name, None)
            if observed.rows and not (isinstance(step, Unit) and step.remainder_of is not None):
                fits.append(self._compare(step, observed, values, unknowns))
            for patch in values:
                for name in ended:
                    patch.pop(name, None)
        progress(total, total, "done")
        return fits

    def _fit_unit(
        self, step: Unit, observed: Observed, values: list[dict[str, torch.Tensor]], ended: Sequence[str]
    ) -> int:
        unit: Any = self._student.get_submodule(step.student or "")
        convolution, kept = unit.conv, self._chosen_of(step.target)
        prior = self._prior_of_unit(step, convolution)
        random_norm = convolution.weight.norm()
        targets, means, variances = (
            [rows[..., kept].double() for rows in each] for each in (observed.rows, observed.means, observed.variances)
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
                centre = inputs.mean().double().cpu()
                for places, wanted in zip(positions.split(ROWS), (target - mean).split(ROWS), strict=True):
                    rows = inputs.at(places).double().cpu() - centre
                    regression.add(rows, wanted - rows @ prior, importance)
            weight = prior + regression.solve()
        self._write(convolution, weight.T.reshape(convolution.weight.shape), None)
        if self._settings.rescale and convolution.weight.norm() > 0:
            convolution.weight.mul_(random_norm / convolution.weight.norm())
        own = []
        for patch in values:
            patch[step.target] = convolution(consume(step, patch, ended))
            own.append(patch[step.target][0].flatten(1).var(1, correction=0).double().cpu())
        self._write_norm(step, unit.norm, means, variances, torch.stack(own).mean(0))
        for patch in values:
            patch[step.target] = after_convolution(unit, patch[step.target])
        return len(prior)

    def _prior_of_unit(self, step: Unit, convolution: Any) -> torch.Tensor:
        """``(inputs * kernel, outputs)``, float64: see ``prior`` in the settings."""
        outputs = self._chosen_of(step.target)
        if self._settings.prior == "zero" and self._settings.refit:
            return torch.zeros(convolution.weight[0].numel(), len(outputs), dtype=torch.float64)
        if step.teacher is None:  # the teacher hands its channels on as they are
            return self._inputs_of(step.sources)[outputs].T
        unit: Any = self._teacher.get_submodule(step.teacher)
        chosen = unit.conv.weight.double().cpu()[outputs].flatten(2)
        return torch.einsum("oik,ij->jko", chosen, self._inputs_of(step.sources)).flatten(0, 1)

    def _instance_weights(self, variances: list[torch.Tensor]) -> list[float]:
        """``1 / v_b``; 0 for patches in which the layer is constant."""
        means = [float(variance.mean()) for variance in variances]
        least = SMALLEST_VARIANCE * max(means)
        return [1 / mean if mean > least else 0.0 for mean in means]

    def _write_norm(
        self,
        step: Unit,
        norm: Any,
        means: list[torch.Tensor],
        variances: list[torch.Tensor],
        own: torch.Tensor,
    ) -> None:
        """The teacher's scale and shift; where its layer has another target, those that the target has.

        A norm divides by ``sqrt(v + eps)``. What ``eps`` takes from a channel depends on its variance ``v``, and the student's
        (``own``) is another than the teacher's: the scale makes up for it.
        """
        if not norm.affine:
            return
        variance = torch.stack(variances).mean(0)
        if step.teacher is None or step.remainder_of is not None:
            scale, shift = variance.sqrt(), torch.stack(means).mean(0)
        else:
            of_teacher: Any = self._teacher.get_submodule(step.teacher)
            if not of_teacher.norm.affine:
                return
            kept = self._chosen_of(step.target)
            scale, shift = of_teacher.norm.weight.double().cpu()[kept], of_teacher.norm.bias.cpu()[kept]
            scale = scale * _where_positive(variance, variance / (variance + of_teacher.norm.eps)).sqrt()
        norm.weight.copy_(scale * _where_positive(own, (own + norm.eps) / own).sqrt())
        norm.bias.copy_(shift)

    def _fit_bare(self, step: Bare, observed: Observed, values: list[dict[str, torch.Tensor]]) -> int:
        module: Any = self._student.get_submodule(step.path)
        of_teacher: Any = self._teacher.get_submodule(step.path)
        kept = self._chosen_of(step.target)
        of_all_inputs = weights_of_bare(of_teacher).double().cpu()[:, :, kept]
        prior = torch.einsum("iko,ij->jko", of_all_inputs, self._inputs_of([step.source]))
        bias = torch.zeros(len(kept), dtype=torch.float64)
        if of_teacher.bias is not None:
            bias = of_teacher.bias.double().cpu()[kept]
        weight = prior
        if self._settings.refit:
            if self._settings.prior == "zero":
                prior = torch.zeros_like(prior)
            rows = [
                rows_at(patch[step.source][0].flatten(1), positions).double()
                for patch, positions in zip(values, observed.positions, strict=True)
            ]
            targets = self._teacher_outputs(step, observed)
            has_bias = module.bias is not None
            regression = InterceptRegression(prior.shape, self._settings.ridge, intercept=has_bias)
            for inputs, target in zip(rows, targets, strict=True):
                regression.add(inputs, target - torch.einsum("np,pkq->nkq", inputs, prior) - bias)
            differences, shift = regression.solve()
            weight, bias = prior + differences, bias + shift
            if step.target in self._pair.heads and self._settings.heads == "probabilities":
                start, said = (weight[:, 0], bias), torch.cat(targets)[:, 0]
                ridge = self._settings.ridge
                fitted, bias = fit_probabilities(torch.cat(rows), said, start, prior[:, 0], ridge, self._regions)
                weight = fitted[:, None]
        weight = weight.permute(0, 2, 1) if isinstance(module, TRANSPOSED) else weight.permute(2, 0, 1)
        self._write(module, weight.reshape(module.weight.shape), bias)
        return len(prior)

    def _write(self, module: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if not weight.isfinite().all():
            raise TeacherError("the fit of a layer gave weights that are not finite; raise inheritance.ridge")
        module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.zero_() if bias is None else module.bias.copy_(bias)

    def _read(self, step: Step, values: torch.Tensor) -> torch.Tensor:
        """Of heads that are fitted to probabilities, these; of all else the values ``(..., C)`` themselves."""
        if step.target not in self._pair.heads or self._settings.heads == "logits":
            return values
        return values.sigmoid() if self._regions else values.softmax(-1)

    def _teacher_outputs(self, step: Step, observed: Observed) -> list[torch.Tensor]:
        """What the teacher hands on at the sampled places and the chosen channels, per patch, float64.

        ``(n, C)``, of a bare step ``(n, K, C)``. Computed from what was kept before the step's norm, or in front of a bare step.
        """
        kept, path = self._chosen_of(step.target), paths(step)[0]
        rows = [one.double() for one in observed.rows]
        if isinstance(step, Join) or path is None:
            return [one[:, kept] for one in rows]
        module: Any = self._teacher.get_submodule(path)
        if isinstance(step, Bare):
            weight = weights_of_bare(module).double().cpu()[:, :, kept]
            bias = 0 if module.bias is None else module.bias.double().cpu()[kept]
            return [torch.einsum("np,pkq->nkq", one, weight) + bias for one in rows]
        norm = module.norm
        scale, shift = (norm.weight, norm.bias) if norm.affine else (torch.ones(1), torch.zeros(1))
        outputs = []
        for one, mean, variance in zip(rows, observed.means, observed.variances, strict=True):
            normed = (one - mean) / (variance.double() + norm.eps).sqrt() * scale.double().cpu() + shift.double().cpu()
            outputs.append((module.nonlin(normed) if hasattr(module, "nonlin") else normed)[:, kept])
        return outputs

    def _compare(
        self, step: Step, observed: Observed, values: list[dict[str, torch.Tensor]], unknowns: int
    ) -> LayerFit:
        kept = self._chosen_of(step.target)
        teachers = [self._read(step, rows) for rows in self._teacher_outputs(step, observed)]
        left = signal = 0.0
        mean = torch.cat(teachers).flatten(0, -2).mean(0)
        for patch, positions, expected in zip(values, observed.positions, teachers, strict=True):
            output = patch[step.target][0]
            if isinstance(step, Bare):
                module: Any = self._student.get_submodule(step.path)
                made = children(output, module.kernel_size)[positions.to(output.device)].cpu()
            else:
                made = rows_at(output.flatten(1), positions)
            left += float((self._read(step, made.double()) - expected).square().sum())
            signal += float((expected - mean).square().sum())
        return LayerFit(
            name=step.target,
            kept=tuple(kept.tolist()),
            teacher_channels=self._teacher_widths[self._pair.spaces[step.target]],
            unknowns=unknowns,
            samples=sum(map(len, teachers)),
            unexplained=left / signal if signal > 0 else 0.0,
        )


def _where_positive(variance: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """``ratio``, and 1 for channels that do not vary."""
    return torch.where(variance > 0, ratio, torch.ones_like(ratio))
