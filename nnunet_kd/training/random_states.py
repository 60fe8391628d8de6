"""The states of every random generator that a training draws from, taken and put back.

nnU-Net's loaders draw from Python's, NumPy's and PyTorch's global generators. With ``nnUNet_n_proc_DA=0`` they run in the
training process, and a resumed training that puts the states back sees the very batches that it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nnunet_kd.training.distributed import gather, is_distributed


def random_states(device: torch.device) -> list[dict[str, Any]]:
    """Of every process, in the order of ranks. All processes must call it."""
    return gather(own_random_states(device))


def own_random_states(device: torch.device) -> dict[str, Any]:
    """Of this process; plain numbers and tensors."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002  what nnU-Net's loaders draw from
    _, keys, position, has_normal, normal = numpy_state
    return {
        "python": random.getstate(),
        "numpy": {"keys": keys.tolist(), "position": position, "has_normal": has_normal, "normal": normal},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(everyone: list[Mapping[str, Any]], device: torch.device) -> bool:
    """Put this process's states back; ``False`` if they were taken with another number of processes."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    if len(everyone) != size:
        return False
    restore_own_random_states(everyone[rank], device)
    return True


def restore_own_random_states(own: Mapping[str, Any], device: torch.device) -> None:
    """Counterpart of :func:`own_random_states`."""
    random.setstate(own["python"])
    numpy = own["numpy"]
    keys = np.array(numpy["keys"], dtype=np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_normal"], numpy["normal"]))  # noqa: NPY002
    torch.set_rng_state(own["torch"])
    if device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], device)
