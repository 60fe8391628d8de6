"""What nnU-Net calls the entries of its checkpoints, and checkpoints as its trainers take them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FINAL = "checkpoint_final.pth"
BEST = "checkpoint_best.pth"
LATEST = "checkpoint_latest.pth"
"""Files of a trained fold."""

WEIGHTS = "network_weights"
OPTIMIZER = "optimizer_state"
GRADIENT_SCALER = "grad_scaler_state"
LOGGING = "logging"
BEST_SCORE = "_best_ema"
EPOCH = "current_epoch"
"""The number of epochs that were trained."""
INIT_ARGUMENTS = "init_args"
TRAINER = "trainer_name"
MIRROR_AXES = "inference_allowed_mirroring_axes"

KEYS = (WEIGHTS, OPTIMIZER, GRADIENT_SCALER, LOGGING, BEST_SCORE, EPOCH, INIT_ARGUMENTS, TRAINER, MIRROR_AXES)
"""Everything that ``nnUNetTrainer.save_checkpoint`` writes."""


def trained_plans(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The plan that a checkpoint's trainer was made with."""
    plans: dict[str, Any] = checkpoint[INIT_ARGUMENTS]["plans"]
    return plans


def trained_configuration(checkpoint: Mapping[str, Any]) -> str:
    """The configuration that a checkpoint's trainer was made with."""
    return str(checkpoint[INIT_ARGUMENTS]["configuration"])


@contextlib.contextmanager
def as_file(checkpoint: Mapping[str, Any] | str | Path) -> Iterator[Path]:
    """A checkpoint's file, written for as long as the context lasts if it is given as a dictionary.

    nnU-Net says that its trainers load dictionaries; those of 2.8 load files alone.
    """
    if isinstance(checkpoint, str | Path):
        yield Path(checkpoint)
        return
    import torch

    with tempfile.TemporaryDirectory(prefix="nnunet_kd_checkpoint_") as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save(dict(checkpoint), path)
        yield path
