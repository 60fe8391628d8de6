"""Training patches for the start, drawn without a trace in the training that follows."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from nnunet_kd.nnunet.training import patch_loader
from nnunet_kd.training.random_states import own_random_states, restore_own_random_states

LEAST_PATCHES, MOST_PATCHES = 4, 512
"""However large or small they are: one image says too little about a layer, and a thousand say no more."""


def patch_count(voxels: int, patch_size: tuple[int, ...]) -> int:
    """How many patches hold ``voxels``, within :data:`LEAST_PATCHES` and :data:`MOST_PATCHES`."""
    return min(MOST_PATCHES, max(LEAST_PATCHES, math.ceil(voxels / math.prod(patch_size))))


def training_patches(trainer: Any, count: int, augmented: bool, seed: int) -> list[torch.Tensor]:
    """Images of training cases, cropped as nnU-Net's loader crops them, a third of them around foreground.

    In this process. Every random generator that is drawn from has afterwards the state that it had before.

    Args:
        trainer: a :class:`~nnunet_kd.training.started.StartedTrainer`, initialised.
        count: how many; from fewer cases several each.
        augmented: as in training; ``False``: as in nnU-Net's validation, without augmentation.
        seed: of crops and augmentation.

    Returns:
        ``(1, C, *patch size)`` each, float32, on the CPU.
    """
    with _generators_of_its_own(seed):
        loader = patch_loader(trainer, augmented, trainer.foreground_share)
        return [next(loader)["data"][:1].clone() for _ in range(count)]


@contextlib.contextmanager
def _generators_of_its_own(seed: int) -> Iterator[None]:
    """Within, Python's, NumPy's and PyTorch's generators are seeded; afterwards they go on where they were."""
    cpu = torch.device("cpu")
    before = own_random_states(cpu)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  what nnU-Net's loader draws from
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        restore_own_random_states(before, cpu)
