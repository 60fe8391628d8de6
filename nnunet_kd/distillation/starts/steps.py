"""A teacher and its student side by side, as the steps that both compute, in order.

The steps name modules and the values between them; :func:`run` computes one of them in either network. A *channel space* is
what the channels of a value stand for: values that are added without a convolution in between share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_kd.errors import PlanError

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
    """What :func:`pair` finds.

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


def pair(teacher: nn.Module, student: nn.Module) -> Pair:
    """The steps of two networks that differ in their channels only.

    Raises:
        PlanError: another architecture, norm or layout than can be handled, or two networks that differ in more.
    """
    for whose, network in (("teacher", teacher), ("student", student)):
        if type(network) not in (PlainConvUNet, ResidualEncoderUNet):
            raise PlanError(
                f"the {whose}'s network is a {type(network).__name__}; only PlainConvUNet and ResidualEncoderUNet are supported"
            )
    if type(teacher) is not type(student):
        raise PlanError(
            f"the teacher's network is a {type(teacher).__name__}, the student's a {type(student).__name__}"
        )
    found = Pair()
    stages = _encoder(found, teacher, student)
    _decoder(found, teacher, student, stages)
    for step in found.steps:
        check_step(step, teacher, student)
    classes = [network.get_submodule(found.heads[-1]).out_channels for network in (teacher, student)]
    if classes[0] != classes[1]:
        raise PlanError(f"the teacher's heads have {classes[0]} outputs, the student's {classes[1]}")
    return found


def _encoder(found: Pair, teacher: Any, student: Any) -> list[str]:
    """Adds the encoder's steps; returns every stage's value, finest first."""
    counts = [len(network.encoder.stages) for network in (teacher, student)]
    if counts[0] != counts[1]:
        raise PlanError(f"the teacher has {counts[0]} stages, the student {counts[1]}")
    value = IMAGE
    if getattr(teacher.encoder, "stem", None) is not None:
        value = _stacked(found, teacher, student, "encoder.stem", (value,))
    stages = []
    for number, stage in enumerate(teacher.encoder.stages):
        path = f"encoder.stages.{number}"
        if isinstance(stage, StackedResidualBlocks):
            _check_counts(path, *(len(network.get_submodule(path).blocks) for network in (teacher, student)))
            for place in range(len(stage.blocks)):
                value = _block(found, teacher, student, f"{path}.blocks.{place}", value)
        else:  # a sequence of one stack of convolutions; pooling in front of it is not used by nnU-Net
            value = _stacked(found, teacher, student, f"{path}.0", (value,))
        stages.append(value)
    return stages


def _decoder(found: Pair, teacher: Any, student: Any, stages: list[str]) -> None:
    value = stages[-1]
    for number, skip in enumerate(reversed(stages[:-1])):
        path = f"decoder.transpconvs.{number}"
        up = found.add(Bare(path, value, path))
        value = _stacked(found, teacher, student, f"decoder.stages.{number}", (up, skip))
        path = f"decoder.seg_layers.{number}"
        found.heads.append(found.add(Bare(path, value, path)))


def _stacked(found: Pair, teacher: nn.Module, student: nn.Module, path: str, values: tuple[str, ...]) -> str:
    stacks = [network.get_submodule(path) for network in (teacher, student)]
    if not all(isinstance(stack, StackedConvBlocks) for stack in stacks):
        raise PlanError(f"{path} is a {type(stacks[0]).__name__}, which is not known")
    counts: Any = [len(stack.convs) for stack in stacks]  # type: ignore[arg-type]
    _check_counts(path, *counts)
    for place in range(counts[0]):
        unit = f"{path}.convs.{place}"
        values = (found.add(Unit(unit, unit, values, unit)),)
    return values[0]


def _check_counts(path: str, teacher: int, student: int) -> None:
    if teacher != student:
        raise PlanError(f"{path} has {teacher} layers in the teacher and {student} in the student")


def _block(found: Pair, teacher: nn.Module, student: nn.Module, path: str, value: str) -> str:
    """A residual block of two (``BasicBlockD``) or three (``BottleneckD``) convolutions; returns its value."""
    parts = [_SkipParts.read(network.get_submodule(path)) for network in (teacher, student)]
    if parts[0].pool != parts[1].pool:
        raise PlanError(f"{path} pools in one of the two networks only")
    skip = value
    if parts[0].pool is not None:
        skip = found.add(Pool(f"{path}.{parts[0].pool}", skip, f"{path}.pooled"), same_space_as=skip)
    paths = [f"{path}.{part.convolution}" if part.convolution else None for part in parts]
    if any(paths):
        unit = Unit(paths[0], paths[1], (skip,), f"{path}.skipped", summed=True)
        skip = found.add(unit, same_space_as=None if paths[1] else skip)
    convolutions = [
        f"{path}.{name}" for name in ("conv1", "conv2", "conv3") if hasattr(teacher.get_submodule(path), name)
    ]
    main = value
    for name in convolutions[:-1]:
        main = found.add(Unit(name, name, (main,), name))
    last = convolutions[-1]
    mended = skip if bool(paths[0]) != bool(paths[1]) else None
    main = found.add(Unit(last, last, (main,), last, summed=True, remainder_of=mended))
    target = found.add(Join(f"{path}.nonlin{len(convolutions)}", main, skip, path), same_space_as=main)
    if (
        paths[1] or not paths[0]
    ):  # else the student adds channels of the block's input to those of its output as they are
        found.unite(skip, main)
    return target


@dataclass(frozen=True)
class _SkipParts:
    """Names of what a residual block's skip does; ``None`` where it does not."""

    pool: str | None
    convolution: str | None

    @classmethod
    def read(cls, block: Any) -> _SkipParts:
        if block.apply_stochastic_depth or block.apply_se:
            raise PlanError("residual blocks with stochastic depth or squeeze and excitation are not supported")
        parts = list(block.skip) if isinstance(block.skip, nn.Sequential) else []
        names = {isinstance(part, ConvDropoutNormReLU): f"skip.{place}" for place, part in enumerate(parts)}
        return cls(pool=names.get(False), convolution=names.get(True))


def check_step(step: Step, teacher: nn.Module, student: nn.Module) -> None:
    """Raise a PlanError unless the step is computed in a way that is known, and in the same way by both networks."""
    layouts, widths = [], []
    for path, network in zip(paths(step), (teacher, student), strict=True):
        if path is None or isinstance(step, (Pool, Join)):
            continue
        module: Any = network.get_submodule(path)
        convolution = module.conv if isinstance(step, Unit) else module
        if convolution.groups != 1 or any(size != 1 for size in convolution.dilation):
            raise PlanError(f"{path} has groups or dilation, which are not supported")
        if isinstance(step, Unit):
            _check_unit(path, module)
        elif isinstance(convolution, TRANSPOSED) and convolution.kernel_size != convolution.stride:
            raise PlanError(f"{path}: an up-convolution whose kernel is not its stride is not supported")
        widths.append(convolution.out_channels)
        layouts.append((convolution.kernel_size, convolution.stride, convolution.padding))
    if len(set(layouts)) > 1:
        raise PlanError(
            f"{paths(step)[0]}: kernel, stride and padding are {layouts[0]} in the teacher and {layouts[1]} in the student"
        )
    if len(widths) == 2 and widths[1] > widths[0]:
        raise PlanError(f"{paths(step)[0]} has {widths[0]} channels in the teacher, but {widths[1]} in the student")


def _check_unit(path: str, unit: Any) -> None:
    norm = getattr(unit, "norm", None)
    if not isinstance(norm, _InstanceNorm) or norm.track_running_stats:
        raise PlanError(
            f"{path} is followed by {type(norm).__name__ if norm is not None else 'no norm'}; only instance norm is supported"
        )
    known = [unit.conv, *([unit.dropout] if hasattr(unit, "dropout") else []), norm]
    if list(unit.all_modules)[: len(known)] != known:
        raise PlanError(f"{path} has its activation before its norm (nonlin_first), which is not supported")


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
