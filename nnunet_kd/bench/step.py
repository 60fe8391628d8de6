"""``nnunet-kd bench step``: what distillation adds to a training step, every part measured in one run."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.bench.measure import time_in_turn
from nnunet_kd.bench.pair import (
    DATASET_JSON,
    make_trainer,
    nnunet_folders,
    random_batch,
    write_untrained_teacher,
)
from nnunet_kd.objectives.base import StepOutputs
from nnunet_kd.plans import read_plans
from nnunet_kd.shipped import shipped_folder

CONFIGURATION = "3d_fullres"


def measure_step(
    trainer_name: str = "nnUNetTrainerDCD", repeats: int = 10, device: torch.device | None = None
) -> dict[str, Any]:
    """One training step of a trainer and its parts, at the hippocampus shape (batch 2, patch 40x56x40, r=4).

    Args:
        trainer_name: a shipped trainer with objectives.
        repeats: counted runs of each part.
        device: default CPU.

    Returns:
        Median seconds of the plain student's step, the teacher's encoder, the objectives alone (forward and backward) and
        the distillation step; and ``ratio``, the last over the sum of the first two.
    """
    device = device or torch.device("cpu")
    plans = read_plans(shipped_folder("plans") / "reference" / "hippocampus.json")
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as root, nnunet_folders(Path(root)), quiet:
        write_untrained_teacher(plans, CONFIGURATION, DATASET_JSON)
        student = make_trainer("nnUNetTrainerStudent", plans, CONFIGURATION, DATASET_JSON, device)
        distilled = make_trainer(trainer_name, plans, CONFIGURATION, DATASET_JSON, device)
        for trainer in (student, distilled):
            trainer.prepare_distillation()
            trainer.network.train()
        batch = random_batch(student)
        image = batch["data"].to(device)
        teacher, distillation = distilled._teacher, distilled._distillation
        features = [feature.clone() for feature in teacher.features(image)]
        own = [feature.detach().requires_grad_() for feature in distilled.network.encoder(image)]

        def objectives() -> None:
            loss, _ = distillation(StepOutputs(student_features=own, teacher_features=features, epoch=0))
            loss.backward()

        timings = time_in_turn(
            {
                "student step": lambda: student.train_step(batch),
                "teacher encoder": lambda: teacher.features(image),
                "objectives": objectives,
                "distillation step": lambda: distilled.train_step(batch),
            },
            repeats,
            device,
            warm_up=2,
        )
    seconds = {name: timing.median for name, timing in timings.items()}
    floor = seconds["student step"] + seconds["teacher encoder"]
    return {
        "trainer": trainer_name,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seconds": seconds,
        "spread": {name: str(timing) for name, timing in timings.items()},
        "ratio": seconds["distillation step"] / floor,
    }
