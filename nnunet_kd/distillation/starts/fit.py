"""A student's weights, fitted front to back to what its teacher makes of the same patches.

Every layer is fitted from the *student's* own inputs to the *teacher's* outputs at the channels that the student stands for,
so that it mends what the layers before it lost. The method and its sources: docs/explanation-inheritance.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_kd.distillation.starts.finite import check_teacher
from nnunet_kd.distillation.starts.kept_channels import KeptChannels
from nnunet_kd.distillation.starts.layer_fit import LayerFit, Progress
from nnunet_kd.distillation.starts.layers import StudentLayers
from nnunet_kd.distillation.starts.observation import TeacherObserver
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.pairing import pair
from nnunet_kd.distillation.starts.steps import IMAGE, Pair, evaluated, exact_convolutions, paths, run
from nnunet_kd.errors import PlanError


def inherit(
    teacher: nn.Module,
    student: nn.Module,
    patches: Sequence[torch.Tensor],
    settings: InheritanceSettings,
    seed: int = 0,
    regions: bool = False,
    progress: Progress = lambda done, of, what: None,
) -> list[LayerFit]:
    """Overwrite a student's weights by what can be computed from its teacher's.

    Args:
        teacher, student: plain modules on one device, of one dtype.
        patches: at least one image ``(1, C, *spatial)`` on the CPU, of the networks' dtype, all of one size.
        settings: see there.
        seed: of sampled voxels, and of randomly chosen channels.
        regions: whether heads are independent (sigmoid) instead of exclusive (softmax).
        progress: see :data:`Progress`.

    Returns:
        One entry per layer with weights and per residual block, in the order of computation.

    Raises:
        PlanError: the networks are of a kind that is not supported, or differ in more than their channels.
        TeacherError: the teacher's weights, or what it makes of a patch, are not finite; a layer's regression has no solution.
    """
    steps = pair(teacher, student)
    check_teacher(teacher)
    with evaluated(teacher, student), torch.no_grad(), exact_convolutions():
        total = len(patches) + len(steps.steps)
        observer = TeacherObserver(steps, teacher, student, len(patches), seed)
        device = next(teacher.parameters()).device
        for number, patch in enumerate(patches):
            progress(number, total, "the teacher looks at patches")
            values = {IMAGE: patch.to(device)}
            observer.look(values)
            if number == 0:
                _check_steps(steps, teacher, patch.to(device))
            values.clear()
        kept = KeptChannels(steps, teacher, student, settings, seed, observer.covariances, patches[0].shape[1])
        layers = StudentLayers(steps, teacher, student, settings, kept, regions)
        return layers.fit_all(observer, [patch.to(device) for patch in patches], progress, len(patches), total)


def _check_steps(steps: Pair, teacher: Any, patch: torch.Tensor) -> None:
    """The steps are a reading of the network's parts; that the network computes just them is checked on a corner of a patch.

    The corner is as small as can be: two voxels of the coarsest stage along each axis.
    """
    least = [2 * math.prod(strides) for strides in zip(*map(tuple, teacher.encoder.strides), strict=True)]
    window: tuple[Any, ...] = (..., *(slice(size) for size in least))
    corner = patch[window].contiguous()
    values = {IMAGE: corner}
    for step in steps.steps:
        values[step.target] = run(step, teacher, paths(step)[0], values)
    logits, output = values[steps.heads[-1]], teacher(corner)
    finest = output[0] if isinstance(output, (list, tuple)) else output
    scale = float(finest.abs().max())
    if finest.shape != logits.shape or float((finest - logits).abs().max()) > 1e-3 * scale:
        raise PlanError(f"the teacher's network {type(teacher).__name__} computes something else than its known parts")
