"""``nnunet-kd bench loss``: stage losses, forward and backward, against the same losses through ptwt."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from nnunet_kd.errors import RunFailed
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.losses.detail_loss import detail_loss
from nnunet_kd.system.memory import peak_resident_bytes, resident_bytes
from nnunet_kd.workflows.bench import ptwt_reference
from nnunet_kd.workflows.bench.pair import Shape

SPEED_SHAPE = (1, 32, 40, 56, 40)
MEMORY_SHAPE = (2, 32, 128, 128, 128)
SHOWN_LINES = 5
"""Of what a failed process said last."""


PTWT, ZERO, PERIODIZATION = "ptwt, zero", "nnunet-kd, zero", "nnunet-kd, periodization"


def stage_shapes(shape: Shape, batch_size: int | None = None) -> list[tuple[int, ...]]:
    """Of the teacher's feature ``(B, C, *spatial)`` in every encoder stage of a plan, finest first.

    Args:
        shape: the plan.
        batch_size: default: the plan's.
    """
    own = shape.configuration["architecture"]["arch_kwargs"]
    strides = torch.tensor(own["strides"]).cumprod(0).tolist()
    patch, batch = shape.configuration["patch_size"], batch_size or int(shape.configuration["batch_size"])
    sizes = ((-(-edge // step) for edge, step in zip(patch, stride, strict=True)) for stride in strides)
    return [(batch, channels, *size) for channels, size in zip(own["features_per_stage"], sizes, strict=True)]


def _inputs(
    shape: tuple[int, ...], device: torch.device | None = None, reduction: int = 4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    device = device or torch.device("cpu")
    generator = torch.Generator(device).manual_seed(0)
    teacher = torch.randn(shape, generator=generator, device=device)
    small = (shape[0], shape[1] // reduction, *shape[2:])
    student = torch.randn(small, generator=generator, device=device).requires_grad_()
    weight = torch.randn((shape[1], shape[1] // reduction), generator=generator, device=device)
    return teacher, student, weight.mul_(0.3).requires_grad_()


def measure_speed(
    shapes: Sequence[tuple[int, ...]] = (SPEED_SHAPE,),
    repeats: int = 7,
    threads: int = 1,
    device: torch.device | None = None,
    with_ptwt: bool = True,
) -> dict[str, Any]:
    """Forward and backward of stage losses in one process, in turn, float32.

    Args:
        shapes: of the teacher's features ``(B, C, D, H, W)``, whose losses are computed one after the other; a student has a
            quarter of the channels.
        repeats: counted runs of each form.
        threads: CPU threads.
        device: default CPU.
        with_ptwt: also ptwt's, a dense convolution with 512 taps; it takes a multiple of the memory.

    Returns:
        Median seconds of each form of all stages together; with ptwt also ratios to it, and the largest relative difference of
        losses and gradients between the two forms in the mode that both know.
    """
    device = device or torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    stages = [_inputs(shape, device) for shape in shapes]

    def run(form: Any, mode: str) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for teacher, student, weight in stages:
            loss = form(teacher, student, weight, mode=mode)
            found += [loss.detach(), *torch.autograd.grad(loss, (student, weight))]
        return found

    work = {
        **({PTWT: lambda: run(ptwt_reference.detail_loss, "zero")} if with_ptwt else {}),
        ZERO: lambda: run(detail_loss, "zero"),
        PERIODIZATION: lambda: run(detail_loss, "periodization"),
    }
    try:
        timings = time_in_turn(work, repeats, device)
        result: dict[str, Any] = {
            "shapes": [list(shape) for shape in shapes],
            "threads": threads,
            "device": str(device),
            "seconds": {name: timing.median for name, timing in timings.items()},
        }
        if with_ptwt:
            reference = timings[PTWT].median
            result["faster"] = {name: reference / timing.median for name, timing in timings.items()}
            pairs = zip(work[PTWT](), work[ZERO](), strict=True)
            result["largest relative difference"] = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    finally:
        torch.set_num_threads(before)
    return result


def measure_memory(shape: tuple[int, ...] = MEMORY_SHAPE, device: torch.device | None = None) -> dict[str, Any]:
    """Peak memory of one stage loss, forward and backward, in a process of its own.

    Returns:
        Bytes of the two features; the process's peak above what it held before they were made, on CUDA the allocator's; and
        their ratio.

    Raises:
        RunFailed: the process ended with an error, for want of memory for example.
    """
    code = f"from nnunet_kd.workflows.bench.loss import memory_here as m; m({shape!r}, {str(device or 'cpu')!r})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        said = "\n".join(finished.stderr.strip().splitlines()[-SHOWN_LINES:])
        how = f"exit code {finished.returncode}" if finished.returncode > 0 else f"signal {-finished.returncode}"
        raise RunFailed(
            f"the process that measures the peak memory at {' x '.join(map(str, shape))} ended with {how}. If memory "
            f"was full, free some and run the same again.\n{said}".rstrip()
        )
    result: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return result


def memory_here(shape: tuple[int, ...], device_name: str) -> dict[str, Any]:
    """The same in this process; also printed as JSON."""
    device = torch.device(device_name)
    cuda = device.type == "cuda"
    warm = _inputs((1, 8, 16, 16, 16), device)
    detail_loss(*warm).backward()
    before = torch.cuda.memory_allocated(device) if cuda else resident_bytes()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    teacher, student, weight = _inputs(shape, device)
    features = teacher.nbytes + student.nbytes
    detail_loss(teacher, student, weight).backward()
    peak = (torch.cuda.max_memory_allocated(device) if cuda else peak_resident_bytes()) - before
    result = {"shape": list(shape), "features": features, "peak": peak, "ratio": peak / features}
    print(json.dumps(result))
    return result
