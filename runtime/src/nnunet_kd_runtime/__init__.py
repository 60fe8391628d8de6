"""Run students that nnunet-kd exported, as nnU-Net would, without PyTorch and nnU-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_kd_runtime.arrays import segment as segment

__version__ = "0.1.0"
__all__ = ["__version__", "segment"]


def __getattr__(name: str) -> object:
    """Import ``segment`` when it is asked for: its requirements take a moment to load."""
    if name == "segment":
        from nnunet_kd_runtime.arrays import segment

        return segment
    raise AttributeError(name)
