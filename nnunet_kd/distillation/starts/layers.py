"""One layer of a student after the other, fitted to what the teacher's layer makes of the same patches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from nnunet_kd.distillation.starts.convolution_inputs import ConvolutionInputs
from nnunet_kd.distillation.starts.heads import fit_probabilities
from nnunet_kd.distillation.starts.kept_channels import KeptChannels
from nnunet_kd.distillation.starts.layer_fit import LayerFit, Progress
from nnunet_kd.distillation.starts.observation import Observed, TeacherObserver, children, rows_at, weights_of_bare
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.regression import CentredRegression, InterceptRegression, NoSolution
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
        kept: KeptChannels,
        regions: bool,
    ) -> None:
        self._pair, self._teacher, self._student = steps, teacher, student
        self._settings, self._kept, self._regions = settings, kept, regions

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
        convolution, kept = unit.conv, self._kept.of(step.target)
        prior = self._kept.prior_of_unit(step, convolution)
        random_norm = convolution.weight.norm()
        targets, means, variances = (
            [rows[..., kept].double() for rows in each] for each in (observed.rows, observed.means, observed.variances)
        )
        if step.remainder_of is not None:
            for number, patch in enumerate(values):
                skipped = patch[step.remainder_of][0].flatten(1)
                targets[number] -= rows_at(skipped, observed.positions[number]).double()
                means[number] -= skipped.mean(1).cpu().double()
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
                centre = inputs.mean().cpu().double()
                for places, wanted in zip(positions.split(ROWS), (target - mean).split(ROWS), strict=True):
                    rows = inputs.at(places).cpu().double() - centre
                    regression.add(rows, wanted - rows @ prior, importance)
            with _naming(step):
                weight = prior + regression.solve()
        self._write(step, convolution, weight.T.reshape(convolution.weight.shape), None)
        if self._settings.rescale and convolution.weight.norm() > 0:
            convolution.weight.mul_(random_norm / convolution.weight.norm())
        own = []
        for patch in values:
            patch[step.target] = convolution(consume(step, patch, ended))
            own.append(patch[step.target][0].flatten(1).var(1, correction=0).cpu().double())
        self._write_norm(step, unit.norm, means, variances, torch.stack(own).mean(0))
        for patch in values:
            patch[step.target] = after_convolution(unit, patch[step.target])
        return len(prior)

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
            kept = self._kept.of(step.target)
            scale, shift = (
                value[kept] for value in _scale_and_shift(of_teacher.norm, self._kept.teacher_width(step.target))
            )
            scale = scale * _where_positive(variance, variance / (variance + of_teacher.norm.eps)).sqrt()
        _set(norm.weight, scale * _where_positive(own, (own + norm.eps) / own).sqrt())
        _set(norm.bias, shift)

    def _fit_bare(self, step: Bare, observed: Observed, values: list[dict[str, torch.Tensor]]) -> int:
        module: Any = self._student.get_submodule(step.path)
        of_teacher: Any = self._teacher.get_submodule(step.path)
        prior, has_bias = self._kept.prior_of_bare(step), module.bias is not None
        bias = torch.zeros(prior.shape[-1], dtype=torch.float64)
        if of_teacher.bias is not None and has_bias:  # a student without one has to make up for it by its weights
            bias = of_teacher.bias.cpu().double()[self._kept.of(step.target)]
        weight = prior
        if self._settings.refit:
            rows = [
                rows_at(patch[step.source][0].flatten(1), positions).double()
                for patch, positions in zip(values, observed.positions, strict=True)
            ]
            targets = self._teacher_outputs(step, observed)
            regression = InterceptRegression(prior.shape, self._settings.ridge, intercept=has_bias)
            for inputs, target in zip(rows, targets, strict=True):
                regression.add(inputs, target - torch.einsum("np,pkq->nkq", inputs, prior) - bias)
            with _naming(step):
                differences, shift = regression.solve()
            weight, bias = prior + differences, bias + shift
            if step.target in self._pair.heads and self._settings.heads == "probabilities":
                start, said = (weight[:, 0], bias), torch.cat(targets)[:, 0]
                ridge = self._settings.ridge
                fitted, bias = fit_probabilities(torch.cat(rows), said, start, prior[:, 0], ridge, self._regions)
                weight = fitted[:, None]
        weight = weight.permute(0, 2, 1) if isinstance(module, TRANSPOSED) else weight.permute(2, 0, 1)
        self._write(step, module, weight.reshape(module.weight.shape), bias)
        return len(prior)

    def _write(self, step: Step, module: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if not weight.isfinite().all() or (bias is not None and not bias.isfinite().all()):
            raise TeacherError(_without_solution(step, "its weights are not finite"))
        _set(module.weight, weight)
        if module.bias is not None:
            _set(module.bias, torch.zeros_like(module.bias) if bias is None else bias)

    def _read(self, step: Step, values: torch.Tensor) -> torch.Tensor:
        """Of heads that are fitted to probabilities, these; of all else the values ``(..., C)`` themselves."""
        if step.target not in self._pair.heads or self._settings.heads == "logits":
            return values
        return values.sigmoid() if self._regions else values.softmax(-1)

    def _teacher_outputs(self, step: Step, observed: Observed) -> list[torch.Tensor]:
        """What the teacher hands on at the sampled places and the chosen channels, per patch, float64.

        ``(n, C)``, of a bare step ``(n, K, C)``. Computed from what was kept before the step's norm, or in front of a bare step.
        """
        kept, path = self._kept.of(step.target), paths(step)[0]
        rows = [one.double() for one in observed.rows]
        if isinstance(step, Join) or path is None:
            return [one[:, kept] for one in rows]
        module: Any = self._teacher.get_submodule(path)
        if isinstance(step, Bare):
            weight = weights_of_bare(module).cpu().double()[:, :, kept]
            bias = 0 if module.bias is None else module.bias.cpu().double()[kept]
            return [torch.einsum("np,pkq->nkq", one, weight) + bias for one in rows]
        norm = module.norm
        scale, shift = _scale_and_shift(norm, self._kept.teacher_width(step.target))
        outputs = []
        for one, mean, variance in zip(rows, observed.means, observed.variances, strict=True):
            normed = (one - mean) / (variance.double() + norm.eps).sqrt() * scale + shift
            outputs.append((module.nonlin(normed) if hasattr(module, "nonlin") else normed)[:, kept])
        return outputs

    def _compare(
        self, step: Step, observed: Observed, values: list[dict[str, torch.Tensor]], unknowns: int
    ) -> LayerFit:
        kept = self._kept.of(step.target)
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
            teacher_channels=self._kept.teacher_width(step.target),
            unknowns=unknowns,
            samples=sum(map(len, teachers)),
            unexplained=left / signal if signal > 0 else (0.0 if left == 0 else float("inf")),
        )


def _scale_and_shift(norm: Any, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``(C,)`` each, float64; 1 and 0 where the norm has none."""
    if not norm.affine:
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    return norm.weight.cpu().double(), norm.bias.cpu().double()


def _set(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Rounded before they are sent, since not every device (MPS) knows float64."""
    parameter.copy_(values.to(parameter.dtype))


def _without_solution(step: Step, why: str) -> str:
    return (
        f"the student's layer {step.target} cannot be fitted to its teacher's: {why}, since values became too large or "
        f"were not finite. Take another checkpoint or teacher, or, in a trainer that allows it, begin with --set start=random."
    )


@contextlib.contextmanager
def _naming(step: Step) -> Iterator[None]:
    """Within, a regression without a solution becomes a TeacherError that names the layer."""
    try:
        yield
    except NoSolution as error:
        raise TeacherError(_without_solution(step, "the regression has no stable solution")) from error


def _where_positive(variance: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """``ratio``, and 1 for channels that do not vary."""
    return torch.where(variance > 0, ratio, torch.ones_like(ratio))
