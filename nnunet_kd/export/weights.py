"""Which of a training's weights: file names, and the check that a moving average is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_kd.errors import ModelError
from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.nnunet.checkpoints import BEST, FINAL

CHECKPOINT_OF = {"final": FINAL, "best": BEST, "ema": FINAL}
"""The checkpoint file of each choice. With EMA, nnU-Net's ``network_weights`` are the average in every file."""


def told_weights(choice: str, checkpoint: str) -> str:
    """What the exported weights are called: by their file, unless a moving average was asked for.

    Args:
        choice: final, best or ema.
        checkpoint: file name of what is exported.
    """
    if CHECKPOINT_OF[choice] == checkpoint:
        return choice
    names = {file: name for name, file in reversed(CHECKPOINT_OF.items())}
    return names.get(checkpoint, Path(checkpoint).stem)


def is_average(checkpoint: Mapping[str, Any]) -> bool:
    """Whether ``network_weights`` are an exponential moving average (the weights in training are then kept beside them)."""
    return "training_weights" in checkpoint.get(ENTRY, {})


def check_weights(checkpoint: Mapping[str, Any], choice: str, path: Path) -> None:
    """Refuse ``ema`` for weights that are none.

    Raises:
        ModelError: see above.
    """
    if choice == "ema" and not is_average(checkpoint):
        raise ModelError(
            f"{path} holds no moving average: it was not trained with the setting `ema`. Export --weights final or best."
        )
