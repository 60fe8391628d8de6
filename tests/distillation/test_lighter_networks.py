"""Copies of the teacher that cost less: the same answers, bit for bit, and the weights are shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_kd.distillation.frozen_teacher import FrozenTeacher
from nnunet_kd.distillation.lighter_networks import half_precision_copy, recomputing_copy
from tests.distillation.objectives.steps import TinyNetwork

CPU = torch.device("cpu")
NETWORKS = (PlainConvUNet, ResidualEncoderUNet)


def network(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = kind(
        1, 3, (4, 8, 8), nn.Conv3d, 3, (1, 2, 2), (1, 1, 1), 3, (1, 1), True, nn.InstanceNorm3d, {"affine": True},
        None, None, nn.LeakyReLU, {"inplace": True},
    )  # fmt: skip
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", NETWORKS)
def test_under_autocast_the_copy_answers_bit_for_bit_alike(kind: Any) -> None:
    plain, image = network(kind), torch.randn(2, 1, 8, 8, 8)
    copied = half_precision_copy(plain, torch.float16)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert copied(image)[0].dtype == torch.float16
        for one, other in zip(plain.encoder(image), copied.encoder(image), strict=True):
            assert torch.equal(one, other)
        one, other = (model.decoder(model.encoder(image)) for model in (plain, copied))
    for level, of_copy in zip(one, other, strict=True):
        assert torch.equal(level, of_copy)
    assert all(parameter.dtype == torch.float32 for parameter in plain.parameters())
    kinds = {
        type(module).__name__: parameter.dtype for module in copied.modules() for parameter in module.parameters(False)
    }
    assert kinds.pop("InstanceNorm3d") == torch.float32
    assert set(kinds) == {"Conv3d", "ConvTranspose3d"}
    assert set(kinds.values()) == {torch.float16}
    norms = [model.encoder.stages[0].get_parameter(name) for model in (plain, copied) for name, _ in _norms(model)]
    assert norms[0] is norms[1]


def _norms(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    stage = model.encoder.stages[0]
    names = [name for name, module in stage.named_modules() if isinstance(module, nn.InstanceNorm3d)]
    return [(f"{names[0]}.weight", stage.get_parameter(f"{names[0]}.weight"))]


def test_no_weight_is_cast_in_a_step() -> None:
    """What a profiler sees of casts: those of activations alone."""
    plain, image = network(PlainConvUNet), torch.randn(1, 1, 8, 8, 8)

    def cast_weights(model: nn.Module) -> int:
        shapes = [list(parameter.shape) for parameter in plain.parameters() if parameter.ndim == 5]
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.float16),
            torch.profiler.profile(record_shapes=True) as profile,
        ):
            model.encoder(image)
        return sum(event.name == "aten::_to_copy" and event.input_shapes[0] in shapes for event in profile.events())

    assert cast_weights(plain) > 0
    assert cast_weights(half_precision_copy(plain, torch.float16)) == 0


def test_a_network_of_somebody_elses_is_left_alone() -> None:
    plain = TinyNetwork()
    assert half_precision_copy(plain, torch.float16) is plain


@pytest.mark.parametrize("kind", [*NETWORKS, TinyNetwork])
def test_gradients_are_the_same_and_less_is_kept(kind: Any) -> None:
    plain = network(kind) if kind is not TinyNetwork else TinyNetwork().requires_grad_(False)
    copied = recomputing_copy(plain)
    assert [id(one) for one in plain.parameters()] == [id(one) for one in copied.parameters()]
    found, kept = [], []
    for model in (plain, copied):
        image = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model.decoder(model.encoder(image))
        answer = output[0] if isinstance(output, list) else output
        found.append((answer, torch.autograd.grad(answer.square().mean(), image)[0]))
        kept.append(sum(sizes.values()))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    if kind is not TinyNetwork:
        assert kept[1] < 0.7 * kept[0]


def test_the_teacher_answers_as_its_network_does() -> None:
    plain, image = network(PlainConvUNet), torch.randn(2, 1, 8, 8, 8)
    plain.decoder.deep_supervision = False
    teacher = FrozenTeacher(plain, (4, 8, 8), CPU)
    features, logits = teacher.outputs(image)
    assert torch.equal(logits, plain(image))
    assert not any(tensor.is_inference() for tensor in (*features, logits, *teacher.features(image)))
    again = teacher.decode_with_gradient(teacher.encode_with_gradient(image))
    assert torch.equal(again, logits)
