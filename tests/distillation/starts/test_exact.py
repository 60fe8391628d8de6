"""At r=1 nothing may be lost: a layer that is missed or fitted wrongly changes the logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.options import InheritanceSettings
from tests.distillation.starts.networks import PLAIN, RESIDUAL, images, largest_difference, network

KINDS = [
    pytest.param(PLAIN, 2, {}, id="plain-2d"),
    pytest.param(PLAIN, 3, {}, id="plain-3d"),
    pytest.param(PLAIN, 3, {"bias": False}, id="plain-3d-without-bias"),
    pytest.param(RESIDUAL, 2, {}, id="residual-2d"),
    pytest.param(RESIDUAL, 3, {"features": (4, 4, 8, 8)}, id="residual-3d-joined-stages"),
    pytest.param(RESIDUAL, 3, {"bias": False, "stem_channels": 3}, id="residual-3d-other-stem"),
]


@pytest.mark.parametrize(("dtype", "eps", "allowed"), [(torch.float64, 0.0, 1e-8), (torch.float32, 1e-5, 1e-4)])
@pytest.mark.parametrize(("kind", "dimensions", "options"), KINDS)
@pytest.mark.parametrize("rescale", [False, True])
def test_a_student_as_wide_as_its_teacher_computes_the_same(
    rescale: bool, kind: type[nn.Module], dimensions: int, options: dict, dtype: torch.dtype, eps: float, allowed: float
) -> None:
    teacher, student = (network(kind, dimensions=dimensions, eps=eps, dtype=dtype, **options) for _ in range(2))
    assert largest_difference(teacher, student, dimensions) > 0.1
    fits = inherit(teacher, student, images(3, dimensions, dtype), InheritanceSettings(rescale=rescale))
    assert largest_difference(teacher, student, dimensions) < allowed
    assert max(fit.unexplained for fit in fits) < allowed**2


@pytest.mark.parametrize("ridge", [1e-6, 10.0])
def test_any_ridge_is_exact(ridge: float) -> None:
    teacher, student = network(), network()
    inherit(teacher, student, images(), InheritanceSettings(ridge=ridge))
    assert largest_difference(teacher, student) < 1e-8


def test_bottleneck_blocks() -> None:
    from dynamic_network_architectures.building_blocks.residual import BottleneckD

    options = {"block": BottleneckD, "bottleneck_channels": [2, 3, 3, 4]}
    teacher, student = (network(RESIDUAL, **options) for _ in range(2))
    inherit(teacher, student, images(), InheritanceSettings())
    assert largest_difference(teacher, student) < 1e-8


def test_one_missed_layer_is_seen() -> None:
    """That the measure of this file can fail, layer by layer."""
    teacher, student = network(), network()
    inherit(teacher, student, images(), InheritanceSettings())
    for name, parameter in student.named_parameters():
        normed_bias = name.endswith("conv.bias") or name.endswith("all_modules.0.bias")
        if normed_bias:
            continue  # an instance norm takes it out
        with torch.no_grad():
            kept = parameter.clone()
            parameter.add_(0.1 * torch.randn_like(parameter))
            assert largest_difference(teacher, student) > 1e-6, name
            parameter.copy_(kept)


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
@pytest.mark.parametrize(("dtype", "eps", "allowed"), [(torch.float64, 0.0, 1e-8), (torch.float32, 1e-5, 1e-4)])
def test_rescaling_does_not_change_what_is_computed(
    kind: type[nn.Module], dtype: torch.dtype, eps: float, allowed: float
) -> None:
    teacher = network(kind, dtype=dtype, eps=eps)
    scaled, unscaled = (network(kind, (2, 3, 4, 4), dtype=dtype, eps=eps) for _ in range(2))
    random = {
        name: float(weight.detach().norm()) for name, weight in scaled.named_parameters() if "conv.weight" in name
    }
    inherit(teacher, scaled, images(dtype=dtype), InheritanceSettings(rescale=True))
    inherit(teacher, unscaled, images(dtype=dtype), InheritanceSettings(rescale=False))
    assert largest_difference(scaled, unscaled) < allowed
    weights = dict(scaled.named_parameters())
    assert random
    assert all(float(weights[name].detach().norm()) == pytest.approx(norm, rel=1e-5) for name, norm in random.items())
