"""How much of a feature to work on at a time, so that what lies between input and loss never exists at full size."""

from __future__ import annotations

import torch

_BYTES = {"cpu": 4 << 20}
_DEFAULT_BYTES = 64 << 20


def block_bytes(device: torch.device) -> int:
    """Size of one block of float values: on a CPU it should stay in cache, on an accelerator fill the device.

    DCD's scratch memory grows with it (docs/reference-performance.md); no accelerator was timed yet.
    """
    return _BYTES.get(device.type, _DEFAULT_BYTES)
