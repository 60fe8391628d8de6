"""What every runtime does, and how it says that it cannot."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Patch = NDArray[np.float32]


class Backend(Protocol):
    """Runs a network on one batch."""

    def __call__(self, image: Patch) -> Patch:
        """Logits ``(B, heads, *patch)`` of ``image (B, channels, *patch)``; the result is the caller's to change."""
        ...


class NetworkError(Exception):
    """The runtime cannot load a network."""


class OtherShape(Exception):
    """A network does not take images of the expected shape.

    Attributes:
        shape: ``(channels, *patch)`` that it takes; ``None`` where it leaves a size open.
    """

    def __init__(self, shape: tuple[int | None, ...]) -> None:
        super().__init__(f"it takes images of {list(shape)} (channels, patch)")
        self.shape = shape


class DeviceNotInstalled(Exception):
    """This installation of the runtime has no support for a device."""


class DeviceUnknown(Exception):
    """The runtime is not made for a device."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, which runtimes let many follow."""
    return str(error).strip().split("\n")[0]
