"""``nnunet-kd bench step``: what distillation adds to a training step, every part measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.system.memory import freed_memory_kept
from nnunet_kd.workflows.bench.pair import HIPPOCAMPUS, Shape, random_batch
from nnunet_kd.workflows.bench.rows import (
    PLAIN_STUDENT,
    STUDENT,
    forward_needed,
    period,
    phases,
    prepared_trainers,
    training_step,
)
from nnunet_kd.workflows.bench.size import measure_sizes


def measure_steps(
    trainers: Sequence[str],
    repeats: int = 10,
    device: torch.device | None = None,
    memory: bool = True,
    shape: Shape | None = None,
) -> dict[str, Any]:
    """One training step of trainers and its floor, in one process.

    Args:
        trainers: shipped trainers with objectives.
        repeats: counted runs of each part.
        device: default CPU.
        memory: also measure each one's peak memory, in a process of its own.
        shape: the plan to train with; default: the hippocampus (batch 2, patch 40x56x40, r=4).

    Returns:
        Median seconds of the plain student's step; of the teacher's encoder and whole forward pass, if any of them runs; and per
        row of :func:`phases` the median of a step in which it counts, its ``ratio`` to (student step + the teacher's forward it
        needs), in ``every`` how many iterations it counts, and ``peak bytes`` (see
        :func:`~nnunet_kd.workflows.bench.size.measure_sizes`).
    """
    device, shape = device or torch.device("cpu"), shape or Shape(HIPPOCAMPUS)
    rows = phases(trainers)
    with prepared_trainers([PLAIN_STUDENT, *rows], shape, device) as prepared:
        student = prepared[STUDENT]
        image = random_batch(student)["data"].to(device)
        batch = random_batch(student)
        work: dict[str, Callable[[], object]] = {"student step": lambda: student.train_step(batch)}
        supervisions = [trainer.supervision for trainer in prepared.values() if trainer.supervision is not None]
        teachers = next((one.teachers for one in supervisions if one.teachers is not None), None)
        if teachers is not None:
            teacher = teachers.members[0]
            work["teacher encoder"] = lambda: teacher.features(image)
            work["teacher forward"] = lambda: teacher.outputs(image)
        for row in rows:
            own = prepared[row.name]
            work[row.name] = training_step(own, random_batch(own), row.exploring)
        with freed_memory_kept(device.type == "cpu"):  # as in a training
            timings = time_in_turn(work, repeats, device, warm_up=2)
        forwards = {row.name: forward_needed(prepared[row.name], row.exploring) for row in rows}
        periods = {row.name: period(prepared[row.name]) for row in rows}
    alone = measure_sizes(trainers, shape, device) if memory else ()
    seconds = {name: timing.median for name, timing in timings.items()}
    return {
        "threads": torch.get_num_threads(),
        "device": str(device),
        "shape": shape.name,
        "seconds": seconds,
        "spread": {name: str(timing) for name, timing in timings.items()},
        "forward": forwards,
        "every": periods,
        "ratio": {
            row.name: seconds[row.name] / (seconds["student step"] + seconds.get(forwards[row.name], 0.0))
            for row in rows
        },
        "peak bytes": {row["name"]: row.get("peak bytes") for row in alone},
    }
