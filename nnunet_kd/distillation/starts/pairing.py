"""The steps that a teacher and its student share, found in nnU-Net's U-Nets; what is not known is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_kd.distillation.starts.steps import IMAGE, TRANSPOSED, Bare, Join, Pair, Pool, Step, Unit, paths
from nnunet_kd.errors import PlanError
from nnunet_kd.system.counts import counted


def pair(teacher: nn.Module, student: nn.Module) -> Pair:
    """The steps of two networks that differ in their channels only.

    Biases may differ, too. A norm takes out those in front of it; others are fitted where the student has them.

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
        raise PlanError(f"the teacher has {counted(counts[0], 'stage')}, the student {counts[1]}")
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
        raise PlanError(f"{path} has {counted(teacher, 'layer')} in the teacher and {student} in the student")


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
        raise PlanError(
            f"{paths(step)[0]} has {counted(widths[0], 'channel')} in the teacher, but {widths[1]} in the student"
        )
    if isinstance(step, Unit):
        _check_scale_and_shift(step, teacher, student)
    _check_activation(step, teacher, student)


def _check_scale_and_shift(step: Unit, teacher: nn.Module, student: nn.Module) -> None:
    """A student's norm must have them unless the teacher's has none either, and a skip leaves it no other target."""
    if step.student is None:
        return
    own: Any = student.get_submodule(step.student)
    of_teacher: Any = None if step.teacher is None else teacher.get_submodule(step.teacher)
    needed = of_teacher is None or of_teacher.norm.affine or step.remainder_of is not None
    if needed and not own.norm.affine:
        raise PlanError(f"{step.student}: the norm has scale and shift (affine) in the teacher, but not in the student")


def _check_activation(step: Step, teacher: nn.Module, student: nn.Module) -> None:
    of_step = [
        (path, network) for path, network in zip(paths(step), (teacher, student), strict=True) if path is not None
    ]
    told = [_activation(step, network, path) for path, network in of_step]
    if len(set(told)) > 1:
        raise PlanError(f"{of_step[0][0]}: the activation is {told[0]} in the teacher and {told[1]} in the student")


def _activation(step: Step, network: nn.Module, path: str) -> str:
    """Kind and settings, but for ``inplace``, which changes nothing."""
    parent, _, name = path.rpartition(".") if isinstance(step, Join) else (path, "", "nonlin")
    activation: Any = getattr(network.get_submodule(parent), name, None)
    if not isinstance(activation, nn.Module):  # of a block without one: a function that changes nothing
        return "none"
    if next(activation.parameters(), None) is not None:
        raise PlanError(f"{path} has an activation with weights ({type(activation).__name__}), which is not supported")
    settings = vars(activation).items()
    said = [f"{key}={value}" for key, value in settings if key[0] != "_" and key not in ("training", "inplace")]
    return f"{type(activation).__name__}({', '.join(said)})"


def _check_unit(path: str, unit: Any) -> None:
    norm = getattr(unit, "norm", None)
    if not isinstance(norm, _InstanceNorm) or norm.track_running_stats:
        raise PlanError(
            f"{path} is followed by {type(norm).__name__ if norm is not None else 'no norm'}; only instance norm is supported"
        )
    known = [unit.conv, *([unit.dropout] if hasattr(unit, "dropout") else []), norm]
    if list(unit.all_modules)[: len(known)] != known:
        raise PlanError(f"{path} has its activation before its norm (nonlin_first), which is not supported")
