"""Soft labels as files: one byte per voxel and foreground class, compressed in blocks of the patch's size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import blosc2
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.nnunet.datasets import block_sizes
from nnunet_kd.system.files import write_atomically

STEPS = 255
"""Probabilities are stored as ``round(255 q)``: each channel at most 1/510 away.

The background is not stored and has what is left to 1, so with ``K`` foreground classes it is at most ``K/510`` away. That far
it is only where all classes are rounded in the same direction, such as 99 classes of a probability just below 1/510 each.
"""


def map_path(folder: Path, case: str) -> Path:
    """Where a case's map lies."""
    return folder / f"{case}.b2nd"


def write_map(folder: Path, case: str, probabilities: np.ndarray, patch_size: Sequence[int]) -> None:
    """Store one case, whole or not at all.

    Args:
        folder: of the set.
        case: its name.
        probabilities: ``(channels, *spatial)``, three axes, between 0 and 1: foreground classes, or regions.
        patch_size: of the network; blocks are cut so that a patch needs few of them.

    Raises:
        MissingRequirement: the disk refused.
    """
    blocks, chunks = block_sizes(probabilities.shape, patch_size, np.dtype(np.uint8).itemsize)
    compressed = blosc2.asarray(
        _rounded(probabilities),
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1},
    )
    content = compressed.to_cframe()
    write_atomically(map_path(folder, case), lambda file: file.write(content))


def _rounded(probabilities: np.ndarray) -> np.ndarray:
    """``round(255 q)``, uint8; beside it one channel at a time is in memory."""
    stored = np.empty(probabilities.shape, np.uint8)
    for channel, values in zip(stored, probabilities, strict=True):
        np.rint(values * STEPS, out=channel, casting="unsafe")
    return stored


def open_map(folder: Path, case: str) -> blosc2.NDArray:
    """A case's map ``(channels, *spatial)``, uint8; blocks are read when they are indexed.

    Raises:
        DataError: it is missing or not whole.
    """
    path = map_path(folder, case)
    mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
    try:
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapped)
    except (RuntimeError, OSError, ValueError) as error:
        what = "is missing" if not path.exists() else f"cannot be read ({error})"
        raise DataError(f"the soft labels of case {case}, {path}: the file {what}.") from error


def is_whole(folder: Path, case: str, shape: Sequence[int]) -> bool:
    """Whether a case's map is there and has ``shape (channels, *spatial)``."""
    if not map_path(folder, case).is_file():
        return False
    try:
        return tuple(open_map(folder, case).shape) == tuple(shape)
    except DataError:
        return False


def crop(stored: blosc2.NDArray, box: Sequence[Sequence[int]]) -> torch.Tensor:
    """The part of a map within a box, as probabilities ``(channels, *box)``, float32; outside the image they are 0.

    Args:
        stored: from :func:`open_map`.
        box: lower and upper bound by axis, which may lie outside.
    """
    cropped = crop_and_pad_nd(stored, [list(bounds) for bounds in box], 0)
    return torch.from_numpy(np.asarray(cropped)).float().div_(STEPS)


def finds_nothing(stored: blosc2.NDArray, has_regions: bool) -> bool:
    """Whether a map decides for background everywhere, as nnU-Net decides: by the largest probability, or regions above 0.5.

    Args:
        stored: from :func:`open_map`; read in slabs of one chunk.
        has_regions: whether channels are regions; else they are classes, and background has what is left of 1.
    """
    depth = stored.chunks[1]
    for begin in range(0, stored.shape[1], depth):
        slab = stored[:, begin : begin + depth]
        highest = slab.max(0).astype(np.int64)
        threshold = STEPS / 2 if has_regions else STEPS - slab.sum(0, dtype=np.int64)
        if np.any(highest > threshold):
            return False
    return True


def bytes_needed(shapes: Sequence[Sequence[int]]) -> int:
    """Upper bound of what maps of these shapes take on disk: one byte per voxel and channel. Compressed they take far less."""
    return sum(int(np.prod(shape)) for shape in shapes)


def check_space(folder: Path, needed: int) -> None:
    """Raise a MissingRequirement if the maps might not fit on the disk of ``folder``.

    Args:
        folder: exists, or its parents do.
        needed: bytes, see :func:`bytes_needed`.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise MissingRequirement(
            f"the maps may take up to {needed / 2**30:.1f} GiB uncompressed, but {there} has {free / 2**30:.1f} GiB free. Free "
            f"space, or soften a model with fewer classes."
        )
