"""Inputs that leave little to fit, and networks that cannot be started from: a finite start, or a refusal that says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from nnunet_kd.distillation.starts import layers
from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.regression import NoSolution
from nnunet_kd.errors import PlanError, TeacherError
from tests.distillation.starts.networks import PLAIN, RESIDUAL, images, largest_difference, network


def test_weights_that_are_not_finite_are_refused() -> None:
    teacher = network()
    with torch.no_grad():
        teacher.decoder.stages[0].convs[0].conv.weight[0, 0] = float("nan")
    student = network(features=(2, 3, 4, 4))
    before = [parameter.clone() for parameter in student.parameters()]
    with pytest.raises(TeacherError, match=r"not finite \(decoder.stages.0.convs.0"):
        inherit(teacher, student, images(), InheritanceSettings())
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_activations_that_are_not_finite_are_refused() -> None:
    teacher = network(dtype=torch.float32, eps=1e-5)
    with torch.no_grad():
        teacher.encoder.stages[1][0].convs[0].norm.weight.fill_(3e38)
    with pytest.raises(TeacherError, match="not finite on a training patch"):
        inherit(
            teacher,
            network(features=(2, 3, 4, 4), dtype=torch.float32),
            images(dtype=torch.float32),
            InheritanceSettings(),
        )


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_constant_images_give_a_finite_start(kind: type[nn.Module]) -> None:
    teacher, student = network(kind, eps=1e-5), network(kind, (2, 3, 4, 4), eps=1e-5)
    inherit(teacher, student, [torch.ones(1, 2, 8, 16, 16, dtype=torch.float64)] * 2, InheritanceSettings())
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_fewer_voxels_than_unknowns_are_enough_at_equal_widths() -> None:
    teacher, student = network(), network()
    few = [image[:, :, :8, :8, :8].contiguous() for image in images(1)]
    fits = inherit(teacher, student, few, InheritanceSettings())
    assert any(fit.samples < fit.unknowns for fit in fits)
    assert largest_difference(teacher, student) < 1e-8


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_a_bottleneck_that_is_dead_gives_a_finite_start(kind: type[nn.Module]) -> None:
    """Its outputs are constant, not zero: rounding decides what is left of their variance, also a negative one."""
    for seed in range(4):
        torch.manual_seed(seed)
        teacher, student = network(kind, (4, 6, 12), 2), network(kind, (2, 3, 7), 2)
        last: Any = teacher.encoder.stages[-1]
        with torch.no_grad():
            for norm in last.modules():
                if isinstance(norm, nn.InstanceNorm2d):
                    norm.weight.zero_()
            fits = {fit.name: fit for fit in inherit(teacher, student, images(3, 2), InheritanceSettings())}
        assert all(parameter.isfinite().all() for parameter in student.parameters())
        assert fits["decoder.transpconvs.0"].unexplained < 1e-3


def test_a_prior_of_zero_has_no_weights_to_take_as_they_are() -> None:
    with pytest.raises(
        ValidationError, match="`refit: false` takes the weights of `prior` as they are, which `zero` does not"
    ):
        InheritanceSettings(refit=False, prior="zero")


def test_a_regression_without_a_solution_names_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise NoSolution("not positive definite")

    for regression, layer in (
        ("CentredRegression", "encoder.stages.0.0.convs.0"),
        ("InterceptRegression", "transpconvs.0"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(getattr(layers, regression), "solve", fail)
            with pytest.raises(
                TeacherError, match=rf"{layer} cannot be fitted .*no stable solution, .*begin with --set start=random"
            ):
                inherit(
                    network(dimensions=2),
                    network(features=(2, 3, 4, 4), dimensions=2),
                    images(2, 2),
                    InheritanceSettings(),
                )


def test_a_bottleneck_of_one_voxel_is_refused() -> None:
    tiny = [image[:, :, :4, :8, :8].contiguous() for image in images(1)]
    with pytest.raises(PlanError, match="one voxel, of which an instance norm is not defined"):
        inherit(network(), network(features=(2, 3, 4, 4)), tiny, InheritanceSettings())


def test_a_bottleneck_of_one_voxel_behind_a_skip_of_the_teacher_alone_is_refused() -> None:
    tiny = [image[:, :, :4, :8, :8].contiguous() for image in images(1)]
    teacher, student = network(RESIDUAL, (4, 6, 8, 12)), network(RESIDUAL, (2, 3, 4, 4))
    with pytest.raises(PlanError, match="one voxel, of which an instance norm is not defined"):
        inherit(teacher, student, tiny, InheritanceSettings())


def test_what_is_not_supported_is_named() -> None:
    student = network(features=(2, 3, 4, 4))
    batch = network(norm_op=nn.BatchNorm3d, norm_op_kwargs={"affine": True})
    with pytest.raises(PlanError, match="BatchNorm3d; only instance norm"):
        inherit(batch, student, images(), InheritanceSettings())
    with pytest.raises(PlanError, match="teacher's network is a Sequential"):
        inherit(nn.Sequential(), student, images(), InheritanceSettings())
    with pytest.raises(PlanError, match="PlainConvUNet, the student's a ResidualEncoderUNet"):
        inherit(network(), network(RESIDUAL, (2, 3, 4, 4)), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="4 stages, the student 3"):
        inherit(network(), network(features=(2, 3, 4)), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="2 layers in the teacher and 1 in the student"):
        inherit(network(), network(features=(2, 3, 4, 4), blocks=1), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="8 channels in the teacher, but 9"):
        inherit(network(), network(features=(2, 3, 4, 9)), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="heads have 3 outputs, the student's 2"):
        inherit(network(), network(features=(2, 3, 4, 4), num_classes=2), images(), InheritanceSettings())
    kernels = network(features=(2, 3, 4, 4), kernel_sizes=[(3, 3, 3)] * 4)
    with pytest.raises(PlanError, match="kernel, stride and padding are"):
        inherit(network(), kernels, images(), InheritanceSettings())


def test_a_network_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = network()
    decode = teacher.decoder.forward
    monkeypatch.setattr(teacher.decoder, "forward", lambda skips: [2 * one for one in decode(skips)])
    with pytest.raises(PlanError, match="computes something else than its known parts"):
        inherit(teacher, network(features=(2, 3, 4, 4)), images(), InheritanceSettings())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"nonlin": nn.ReLU},
            r"convs.0: the activation is LeakyReLU\(negative_slope=0.01\) in the teacher and ReLU\(\) in",
        ),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, r"LeakyReLU\(negative_slope=0.2\) in the student"),
        ({"nonlin": nn.PReLU, "nonlin_kwargs": {}}, r"an activation with weights \(PReLU\), which is not supported"),
        (
            {"norm_op_kwargs": {"eps": 0, "affine": False}},
            r"scale and shift \(affine\) in the teacher, but not in the student",
        ),
    ],
)
def test_layers_that_differ_in_more_than_their_channels_are_refused(options: dict, told: str) -> None:
    student = network(features=(2, 3, 4, 4), **options)
    with pytest.raises(PlanError, match=told):
        inherit(network(), student, images(), InheritanceSettings())


def test_the_activation_behind_a_residual_sum_is_compared() -> None:
    teacher, student = network(RESIDUAL, dimensions=2), network(RESIDUAL, dimensions=2)
    student.encoder.stages[2].blocks[1].nonlin2 = nn.ReLU()
    with pytest.raises(
        PlanError, match=r"stages.2.blocks.1.nonlin2: the activation is Leaky.* and ReLU\(\) in the student"
    ):
        inherit(teacher, student, images(3, 2), InheritanceSettings())


def test_what_changes_nothing_may_differ() -> None:
    """Whether activations are in place; biases in front of a norm; scale and shift that the teacher does not have."""
    teacher = network(dimensions=2, bias=False, norm_op_kwargs={"eps": 1e-5, "affine": False})
    student = network(dimensions=2, nonlin_kwargs={"inplace": False}, eps=1e-5)
    inherit(teacher, student, images(3, 2), InheritanceSettings())
    assert largest_difference(teacher, student, 2) < 1e-4
    norms = [module for module in student.modules() if isinstance(module, nn.InstanceNorm2d)]
    assert all(float((norm.weight.detach() - 1).abs().max()) < 1e-2 and not norm.bias.any() for norm in norms)
