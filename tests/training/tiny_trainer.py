"""Trainers for tests: made as nnU-Net makes them, and stepped by hand."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer, random_batch

CPU = torch.device("cpu")


def trainer(
    name: str, plans: dict, *assignments: str, dataset: dict = DATASET_JSON, **options: Any
) -> DistillationTrainer:
    os.environ[SET_VARIABLE] = json.dumps(list(assignments))
    (configuration,) = plans["configurations"]
    made: DistillationTrainer = make_trainer(name, plans, configuration, dataset, CPU, **options)
    return made


def ready(
    name: str, plans: dict, *assignments: str, deep_supervision: bool = True, **options: Any
) -> DistillationTrainer:
    made = trainer(name, plans, "seed=1", *assignments, **options)
    made.enable_deep_supervision = deep_supervision
    with contextlib.redirect_stdout(io.StringIO()):
        made.prepare_distillation()
        made.on_train_epoch_start()
    return made


def steps(made: DistillationTrainer, count: int, first_seed: int = 0) -> list[float]:
    return [float(made.train_step(random_batch(made, first_seed + index))["loss"]) for index in range(count)]


def close_epoch(made: DistillationTrainer) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        made.on_train_epoch_end([{"loss": 0.0}])
    made.current_epoch += 1


def save(made: DistillationTrainer, name: str = "checkpoint_latest.pth") -> Path:
    path = Path(made.output_folder) / name
    made.current_epoch -= 1  # nnU-Net saves within the epoch
    made.save_checkpoint(str(path))
    made.current_epoch += 1
    return path
