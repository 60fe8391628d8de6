"""A device without float64, as Apple's MPS: what is computed in float64 is computed on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.options import InheritanceSettings
from tests.distillation.starts.networks import PLAIN, RESIDUAL, images, largest_difference, network


class OnADevice(torch.Tensor):
    """Stands for a tensor on such a device, and so does all that is computed with it until it is moved by ``cpu()``."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = super().__torch_function__(function, types, arguments, options or {})
        with torch._C.DisableTorchFunctionSubclass():
            if any(one.dtype == torch.float64 for one in _tensors((*arguments, *(options or {}).values(), result))):
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
                )
            return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _moved(net: nn.Module) -> nn.Module:
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(module, name, nn.Parameter(parameter.detach().as_subclass(OnADevice)))
    return net


def test_the_stand_in_refuses_float64() -> None:
    there = torch.ones(2).as_subclass(OnADevice)
    assert type((there + 1).cpu()) is torch.Tensor
    for refused in (lambda: there.double(), lambda: there.copy_(torch.ones(2, dtype=torch.float64))):
        with pytest.raises(TypeError, match="float64"):
            refused()


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_no_float64_on_the_device(kind: type[nn.Module]) -> None:
    """The same start, bit for bit, as where float64 is everywhere; one skip has a projection in the teacher only."""
    options: dict[str, Any] = {"dimensions": 2, "dtype": torch.float32, "eps": 1e-5}
    teacher, student = network(kind, **options), network(kind, (3, 3, 4, 4), **options)
    other = network(kind, (3, 3, 4, 4), **options)
    other.load_state_dict(student.state_dict())
    patches = images(2, 2, torch.float32)
    inherit(teacher, student, patches, InheritanceSettings())
    inherit(_moved(teacher), _moved(other), patches, InheritanceSettings())
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), other.parameters(), strict=True))
    assert largest_difference(student, other, 2) == 0
