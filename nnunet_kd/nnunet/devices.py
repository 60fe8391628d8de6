"""Where PyTorch computes: nnU-Net's names, and whether the device is here."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnunet_kd.errors import SettingsError

DEVICES = ("cuda", "cpu", "mps")


def check_device(device: str, known: Sequence[str] = DEVICES) -> None:
    """The same refusal in every command, before anything is computed.

    Args:
        device: as given with ``-device``.
        known: what the command can use.

    Raises:
        SettingsError: no such device is known, or it is not here.
    """
    if device not in known:
        raise SettingsError(f"-device must be {', '.join(known[:-1])} or {known[-1]}, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("there is no CUDA device here; compute on the CPU with -device cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("there is no Apple GPU (mps) here; compute on the CPU with -device cpu.")
