"""``nnunet-kd bench loss``: one stage loss, forward and backward, against the same loss through ptwt."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.losses.detail_loss import detail_loss
from nnunet_kd.system.memory import peak_resident_bytes, resident_bytes
from nnunet_kd.workflows.bench import ptwt_reference

SPEED_SHAPE = (1, 32, 40, 56, 40)
MEMORY_SHAPE = (2, 32, 128, 128, 128)


def _inputs(shape: tuple[int, ...], reduction: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(shape, generator=generator)
    student = torch.randn((shape[0], shape[1] // reduction, *shape[2:]), generator=generator).requires_grad_()
    weight = torch.randn((shape[1], shape[1] // reduction), generator=generator).mul_(0.3).requires_grad_()
    return teacher, student, weight


def measure_speed(shape: tuple[int, ...] = SPEED_SHAPE, repeats: int = 7, threads: int = 1) -> dict[str, Any]:
    """Forward and backward of one stage loss in one process, in turn.

    Args:
        shape: of the teacher's feature ``(B, C, D, H, W)``; the student has a quarter of its channels.
        repeats: counted runs of each form.
        threads: CPU threads.

    Returns:
        Median seconds of each form, ratios to ptwt, and the largest relative difference of loss and gradients between
        the two forms in the mode that both know.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    teacher, student, weight = _inputs(shape)

    def run(form: Any, mode: str) -> tuple[torch.Tensor, ...]:
        loss = form(teacher, student, weight, mode=mode)
        return (loss.detach(), *torch.autograd.grad(loss, (student, weight)))

    try:
        timings = time_in_turn(
            {
                "ptwt, zero": lambda: run(ptwt_reference.detail_loss, "zero"),
                "nnunet-kd, zero": lambda: run(detail_loss, "zero"),
                "nnunet-kd, periodization": lambda: run(detail_loss, "periodization"),
            },
            repeats,
        )
        slow, fast = run(ptwt_reference.detail_loss, "zero"), run(detail_loss, "zero")
    finally:
        torch.set_num_threads(before)
    reference = timings["ptwt, zero"].median
    difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(slow, fast, strict=True))
    return {
        "shape": list(shape),
        "threads": threads,
        "seconds": {name: timing.median for name, timing in timings.items()},
        "faster": {name: reference / timing.median for name, timing in timings.items()},
        "largest relative difference": difference,
    }


def measure_memory(shape: tuple[int, ...] = MEMORY_SHAPE) -> dict[str, Any]:
    """Peak memory of one stage loss, forward and backward, in a process of its own.

    Returns:
        Bytes of the two features, the process's peak above what it held before they were made, and their ratio.
    """
    code = f"from nnunet_kd.workflows.bench.loss import _memory_child; _memory_child({shape!r})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return result


def _memory_child(shape: tuple[int, ...]) -> None:
    warm = _inputs((1, 8, 16, 16, 16))
    detail_loss(*warm).backward()
    before = resident_bytes()
    teacher, student, weight = _inputs(shape)
    features = teacher.nbytes + student.nbytes
    detail_loss(teacher, student, weight).backward()
    peak = peak_resident_bytes() - before
    print(json.dumps({"shape": list(shape), "features": features, "peak": peak, "ratio": peak / features}))
