"""What is measured: a trainer in one of its phases, ready to take a step of training on random data."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.nnunet.environment import find_trainer, shipped_trainer, trainer_names
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import (
    Shape,
    make_trainer,
    nnunet_folders,
    write_untrained_teacher,
)

STUDENT = "nnUNetTrainerStudent"


@dataclass(frozen=True)
class TrainerPhase:
    """One row of the table: a trainer in one of its phases.

    Attributes:
        name: of the row.
        trainer: the shipped trainer.
        exploring: an exploration step (FoPro's prompts, FreeKD's tuning) instead of a plain distillation step.
    """

    name: str
    trainer: str
    exploring: bool = False

    def assignments(self) -> list[str]:
        """The settings that put the trainer into the phase."""
        if self.trainer != "nnUNetTrainerFreeKD":
            return []
        return [f"objectives.freekd.prompt_iterations={10**9 if self.exploring else 0}"]


PLAIN_STUDENT = TrainerPhase(STUDENT, STUDENT)


def phases(trainers: Sequence[str]) -> list[TrainerPhase]:
    """One row per trainer, and one more for each that explores."""
    rows = []
    for trainer in trainers:
        rows.append(TrainerPhase(trainer, trainer))
        if trainer in ("nnUNetTrainerFoPro", "nnUNetTrainerFreeKD"):
            rows.append(TrainerPhase(f"{trainer}, exploring", trainer, exploring=True))
    return rows


@cache
def all_trainers() -> tuple[str, ...]:
    """Every shipped trainer with objectives of its own, DCD first."""
    named = [name for name in trainer_names() if find_trainer(name).objectives]
    return tuple(sorted(named, key=lambda name: (name != "nnUNetTrainerDCD", name)))


def check_trainers(names: Sequence[str]) -> list[str]:
    """Whether trainers can be measured: those of :func:`all_trainers`, and the plain student's.

    Raises:
        SettingsError: one cannot; lists those that can.
    """
    return [shipped_trainer(name, (*all_trainers(), STUDENT)) for name in names]


@contextlib.contextmanager
def prepared_trainers(
    rows: Sequence[TrainerPhase], shape: Shape, device: torch.device
) -> Iterator[dict[str, DistillationTrainer]]:
    """One trainer per row by its name, ready to train, all with the same untrained teacher."""
    plans, dataset_json = shape.plans, shape.dataset_json
    with tempfile.TemporaryDirectory() as root, nnunet_folders(Path(root)), contextlib.redirect_stdout(io.StringIO()):
        write_untrained_teacher(plans, shape.configuration_name, dataset_json)
        made = {}
        for row in rows:
            os.environ[SET_VARIABLE] = json.dumps(["seed=0", *row.assignments()])
            trainer = make_trainer(row.trainer, plans, shape.configuration_name, dataset_json, device)
            trainer.prepare_distillation()
            trainer.network.train()
            made[row.name] = trainer
        yield made


def training_step(trainer: DistillationTrainer, batch: dict[str, Any], exploring: bool) -> Callable[[], object]:
    """One step in which the objectives count."""
    iteration = 0 if exploring else period(trainer)

    def run() -> None:
        trainer.go_to_iteration(iteration)
        trainer.train_step(batch)

    return run


def period(trainer: DistillationTrainer) -> int:
    """The first iteration after 0 in which every objective counts again; FoPro explores in iteration 0 and not in this one."""
    return 1 if trainer.supervision is None else trainer.supervision.distillation.period


def forward_needed(trainer: DistillationTrainer, exploring: bool) -> str:
    """``teacher encoder``; ``teacher forward`` where logits of the teacher are needed; empty without objectives.

    Exploration reads the teacher's answer to a changed image or feature, so it needs logits.
    """
    if trainer.supervision is None or trainer.supervision.teachers is None:
        return ""
    objectives = trainer.supervision.distillation.all_objectives().values()
    logits = exploring or any(objective.needs_teacher_logits for objective in objectives)
    return "teacher forward" if logits else "teacher encoder"
