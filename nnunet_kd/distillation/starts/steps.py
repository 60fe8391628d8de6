"""A teacher and its student side by side, as the steps that both compute, in order.

The steps name modules and the values between them; :func:`run` computes one of them in either network. A *channel space* is
what the channels of a value stand for: values that are added without a convolution in between share one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

IMAGE = "image"
"""The value that both networks are given."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Unit:
    """Convolution, instance norm and, mostly, an activation.

    Attributes:
        teacher, student: path of the module (``ConvDropoutNormReLU``) in each network; ``None``: it hands the source on.
        sources: values whose channels are put one behind the other.
        target: the value it makes.
        remainder_of: the value of a skip beside it. The student's unit then stands for what the skip leaves of their sum,
            because only one of the two networks has a convolution in that skip.
        summed: its value is but one part of a residual block's sum.
    """

    teacher: str | None
    student: str | None
    sources: tuple[str, ...]
    target: str
    remainder_of: str | None = None
    summed: bool = False


@dataclass(frozen=True)
class Bare:
    """A convolution that no norm follows: an up-convolution or a segmentation head, at the same path in both networks."""

    path: str
    source: str
    target: str


@dataclass(frozen=True)
class Pool:
    """Average pooling in a skip, at the same path in both networks."""

    path: str
    source: str
    target: str


@dataclass(frozen=True)
class Join:
    """The end of a residual block: main path plus skip, then the activation at ``path``."""

    path: str
    main: str
    skip: str
    target: str


Step = Unit | Bare | Pool | Join


@dataclass
class Pair:
    """What :func:`~nnunet_kd.distillation.starts.pairing.pair` finds.

    Attributes:
        steps: in the order of computation.
        spaces: of every value, the name of its channel space.
        heads: the values of the segmentation heads, coarsest first.
    """

    steps: list[Step] = field(default_factory=list)
    spaces: dict[str, str] = field(default_factory=lambda: {IMAGE: IMAGE})
    heads: list[str] = field(default_factory=list)

    def add(self, step: Step, same_space_as: str | None = None) -> str:
        """Append a step; its value, a new one, has a channel space of its own or that of another value."""
        self.steps.append(step)
        self.spaces[step.target] = step.target if same_space_as is None else self.spaces[same_space_as]
        return step.target

    def unite(self, one: str, other: str) -> None:
        """Give two values the same channel space."""
        kept, dropped = self.spaces[one], self.spaces[other]
        self.spaces = {value: kept if space == dropped else space for value, space in self.spaces.items()}

    def last_uses(self) -> dict[int, list[str]]:
        """By place of the step: the values that no later step reads."""
        last = {value: place for place, step in enumerate(self.steps) for value in sources(step)}
        ended: dict[int, list[str]] = {}
        for value, place in last.items():
            ended.setdefault(place, []).append(value)
        return ended


def sources(step: Step) -> tuple[str, ...]:
    """The values that a step reads."""
    if isinstance(step, Unit):
        return step.sources if step.remainder_of is None else (*step.sources, step.remainder_of)
    return (step.main, step.skip) if isinstance(step, Join) else (step.source,)


def paths(step: Step) -> tuple[str | None, str | None]:
    """Path of a step's module in the teacher and in the student."""
    return (step.teacher, step.student) if isinstance(step, Unit) else (step.path, step.path)


def run(step: Step, network: nn.Module, path: str | None, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a step makes of the values of one of the two networks, which is in evaluation mode.

    Args:
        path: the step's module in this network, see :func:`paths`.
        values: by name, ``(B, C, *spatial)``; left as they are.
    """
    if isinstance(step, Join):
        return after_sum(network, step, values[step.main] + values[step.skip])
    inputs = joined_sources(step, values)
    if path is None:
        return inputs
    module: Any = network.get_submodule(path)
    if isinstance(step, Unit):
        return after_convolution(module, module.conv(inputs))
    result: torch.Tensor = module(inputs)
    return result


def joined_sources(step: Unit | Bare | Pool, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The input of a step's module: its sources, channels one behind the other."""
    if not isinstance(step, Unit):
        return values[step.source]
    return values[step.sources[0]] if len(step.sources) == 1 else torch.cat([values[name] for name in step.sources], 1)


def consume(step: Unit | Bare | Pool, values: dict[str, torch.Tensor], ended: Sequence[str]) -> torch.Tensor:
    """:func:`joined_sources`, which are dropped from the values where no later step reads them, so that memory is free again.

    Args:
        ended: the values that no later step reads, see :meth:`Pair.last_uses`.
    """
    inputs = joined_sources(step, values)
    for name in step.sources if isinstance(step, Unit) else (step.source,):
        if name in ended:
            del values[name]
    return inputs


def after_convolution(unit: Any, convolved: torch.Tensor) -> torch.Tensor:
    """Norm and activation of a unit, in evaluation mode (without dropout)."""
    result: torch.Tensor = unit.norm(convolved)
    return unit.nonlin(result) if hasattr(unit, "nonlin") else result


def after_sum(network: nn.Module, step: Join, total: torch.Tensor) -> torch.Tensor:
    """The activation that ends a residual block; overwrites ``total``, as nnU-Net's may."""
    parent, _, name = step.path.rpartition(".")
    activation: Any = getattr(network.get_submodule(parent), name)  # a module, or a function where there is none
    result: torch.Tensor = activation(total)
    return result


@contextlib.contextmanager
def evaluated(*networks: nn.Module) -> Iterator[None]:
    """Within, networks are in evaluation mode."""
    training = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, before in zip(networks, training, strict=True):
            network.train(before)


def exact_convolutions() -> contextlib.AbstractContextManager[Any]:
    """On a GPU: float32 as it is on a CPU, and the same from run to run."""
    context: contextlib.AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )
    return context
