"""How much memory there is, how much a case needs, and what goes to the disk when it is short."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nnunet_kd_runtime.control_groups import free_in_groups
from nnunet_kd_runtime.errors import MissingRequirement, SettingsError

GIB = 1 << 30
ZEROS_AT_ONCE = 1 << 24
"""Bytes written at once to a file."""


def available() -> int | None:
    """Bytes that can still be used, by the system and by the container this runs in; ``None`` where it does not say."""
    limits = [limit for limit in (_system(), free_in_groups()) if limit is not None]
    return min(limits) if limits else None


class Budget:
    """What a run may use.

    Arrays beyond it are kept in files of a temporary folder, which go when the arrays do.

    Attributes:
        limit: bytes; ``None``: no limit is known.
    """

    def __init__(self, gibibytes: float | None, folder: Path | None = None) -> None:
        """Set the limit.

        Args:
            gibibytes: ``--memory``; ``None``: what is available now.
            folder: for files, may not be there yet: then the nearest one above it is taken; ``None``: the system's.

        Raises:
            SettingsError: no positive number.
        """
        number = isinstance(gibibytes, int | float | np.integer | np.floating)
        if gibibytes is not None and not (number and 0 < gibibytes * GIB < math.inf):
            raise SettingsError(f"memory must be a positive number of GiB, got {gibibytes!r}.")
        self.limit = available() if gibibytes is None else int(gibibytes * GIB)
        self._given = gibibytes is not None
        self._folder = folder

    def beside(self, output: Path) -> Budget:
        """The same limit, with files in the folder that results go to."""
        other = copy(self)
        other._folder = output
        return other

    def check(self, channels: int, shape: Sequence[int], resampled: Sequence[int], case: str) -> None:
        """Refuse a case whose image and one float64 channel do not fit.

        Args:
            channels: of the network's input.
            shape: of the image.
            resampled: as the network sees it.
            case: its name, for the message.

        Raises:
            MissingRequirement: with the bytes needed and allowed.
        """
        needed = needed_bytes(channels, shape, resampled)
        if self.limit is not None and needed > self.limit:
            raise MissingRequirement(
                f"case {case} needs {needed} bytes of memory ({needed / GIB:.2f} GiB: the image and one float64 channel), but "
                + (
                    f"--memory allows {self.limit}. Raise --memory or use a larger machine."
                    if self._given
                    else f"{self.limit} are free. Close other programs or use a larger machine."
                )
            )

    def zeros(self, shape: Sequence[int], dtype: DTypeLike, beside: int) -> NDArray[Any]:
        """Zeros in memory, or in a file when they and ``beside`` other bytes exceed the limit."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.limit is None or size + beside <= self.limit:
            return np.zeros(shape, dtype)
        folder = self._existing_folder()
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                _reserve(file, size)
                return np.memmap(file, dtype=dtype, mode="r+", shape=tuple(shape))
        except OSError as error:
            raise MissingRequirement(
                f"{size} bytes of class maps do not fit into memory, and not into {folder} either ({error}). Free space there"
                + (" or raise --memory." if self._given else ", or use a machine with more memory.")
            ) from error

    def _existing_folder(self) -> Path:
        if self._folder is None:
            return Path(tempfile.gettempdir())
        folder = self._folder.absolute()
        return next(place for place in (folder, *folder.parents) if place.is_dir())


def _reserve(file: IO[bytes], size: int) -> None:
    """Zeros with their place on the disk: of a file that only has the size, a full disk ends the process (SIGBUS).

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:  # not every file system can
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    for start in range(0, size, ZEROS_AT_ONCE):
        file.write(bytes(min(ZEROS_AT_ONCE, size - start)))
    file.flush()


def needed_bytes(channels: int, shape: Sequence[int], resampled: Sequence[int]) -> int:
    """The image, the image as the network sees it (both float32), and one channel in float64 on the larger grid."""
    voxels, new_voxels = int(np.prod(shape)), int(np.prod(resampled))
    return 4 * channels * (voxels + new_voxels) + 8 * max(voxels, new_voxels)


def _system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if os.name == "nt":
        return _windows()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _windows() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *(
                (name, ctypes.c_ulonglong)
                for name in ("total", "available", "page", "free", "virtual", "unused", "extended")
            ),
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        return None
    return int(status.available)
