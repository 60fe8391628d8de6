"""``nnunet-kd bench step``: what distillation adds to a training step, every part measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.workflows.bench.pair import Shape, random_batch
from nnunet_kd.workflows.bench.rows import (
    PLAIN_STUDENT,
    STUDENT,
    forward_needed,
    phases,
    prepared_trainers,
    training_step,
)
from nnunet_kd.workflows.bench.size import measure_sizes


def measure_steps(
    trainers: Sequence[str], repeats: int = 10, device: torch.device | None = None, memory: bool = True
) -> dict[str, Any]:
    """One training step of trainers and its floor, at the hippocampus shape (batch 2, patch 40x56x40, r=4).

    Args:
        trainers: shipped trainers with objectives.
        repeats: counted runs of each part.
        device: default CPU.
        memory: also measure each one's peak memory, in a process of its own.

    Returns:
        Median seconds of the plain student's step, of the teacher's encoder and whole forward pass; and per row of
        :func:`phases` the median of its step, its ``ratio`` to (student step + the teacher's forward it needs), and
        ``peak bytes`` (see :func:`~nnunet_kd.workflows.bench.size.measure_sizes`).
    """
    device = device or torch.device("cpu")
    rows = phases(trainers)
    with prepared_trainers([PLAIN_STUDENT, *rows], Shape.HIPPOCAMPUS, device) as prepared:
        student = prepared[STUDENT]
        image = random_batch(student)["data"].to(device)
        batch = random_batch(student)
        teacher = prepared[rows[0].name].supervision.teachers.members[0]  # type: ignore[union-attr]
        work: dict[str, Callable[[], object]] = {
            "student step": lambda: student.train_step(batch),
            "teacher encoder": lambda: teacher.features(image),
            "teacher forward": lambda: teacher.outputs(image),
        }
        for row in rows:
            work[row.name] = training_step(prepared[row.name], batch, row.exploring)
        timings = time_in_turn(work, repeats, device, warm_up=2)
        forwards = {row.name: forward_needed(prepared[row.name], row.exploring) for row in rows}
    alone = measure_sizes(trainers, Shape.HIPPOCAMPUS, device) if memory else ()
    seconds = {name: timing.median for name, timing in timings.items()}
    return {
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seconds": seconds,
        "spread": {name: str(timing) for name, timing in timings.items()},
        "forward": forwards,
        "ratio": {
            row.name: seconds[row.name] / (seconds["student step"] + seconds.get(forwards[row.name], 0.0))
            for row in rows
        },
        "peak bytes": {row["name"]: row.get("peak bytes") for row in alone},
    }
