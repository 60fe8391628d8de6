"""``torch.nn.functional.interpolate`` of one image in NumPy, with the roundings of PyTorch's CPU kernels.

PyTorch computes in float32 and lets the compiler fuse products with the sums that follow them (one rounding instead of
two). A fused product and sum is written here in float64, where the product is exact, and rounded once. Source positions and
weights are PyTorch's ``area_pixel_compute_source_index`` and ``guard_index_and_lambda`` (aten/src/ATen/native/UpSample.h).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError

Image = NDArray[np.float32]
MODES = ("linear", "bilinear", "trilinear", "nearest", "nearest-exact")
LANES = 8
"""Channels that PyTorch's vectorised kernel computes at once with AVX2; the rest of them round in another order."""
SMALL = 128
"""Up to this sum of output rows and columns PyTorch takes its vectorised kernel for images in the plane."""


def interpolate(image: Image, shape: Sequence[int], mode: str) -> Image:
    """``F.interpolate(image[None], shape, mode=mode, antialias=False)[0]`` with ``align_corners=False``.

    Args:
        image: ``(channels, *spatial)``, two or three spatial axes.
        shape: voxels a spatial axis.
        mode: one of :data:`MODES`; ``linear`` is bilinear or trilinear.

    Raises:
        DataError: PyTorch does not have the mode for this number of axes.
    """
    if {"bilinear": 2, "trilinear": 3}.get(mode, len(shape)) != len(shape):
        raise DataError(f"PyTorch has no {mode} interpolation over {len(shape)} axes; nnU-Net fails here, too.")
    if mode.startswith("nearest"):
        for axis, size in enumerate(shape, start=1):
            image = np.take(image, _nearest(image.shape[axis], size, mode == "nearest-exact"), axis)
        return image
    result = np.empty((image.shape[0], *shape), np.float32)
    if len(shape) == 2 and sum(shape) <= SMALL:
        vectorised = image.shape[0] // LANES * LANES
        for channel, plane in enumerate(image):
            result[channel] = _weighted_corners(plane, shape, channel < vectorised)
        return result
    for channel, volume in enumerate(image):
        for axis in reversed(range(len(shape))):
            volume = _along(volume, axis, shape[axis])
        result[channel] = volume
    return result


def _positions(size: int, new_size: int) -> NDArray[np.float32]:
    """Where each new voxel's centre lies among the old ones."""
    scale = np.float32(np.float32(size) / np.float32(new_size))
    centres = np.arange(new_size, dtype=np.float32) + np.float32(0.5)
    return np.maximum((np.float64(scale) * centres - 0.5).astype(np.float32), np.float32(0))


def _nearest(size: int, new_size: int, exact: bool) -> NDArray[np.int64]:
    if size == new_size:
        return np.arange(size)
    if exact:
        positions = _positions(size, new_size) + np.float32(0.5)
    else:
        positions = np.float32(np.float32(size) / np.float32(new_size)) * np.arange(new_size, dtype=np.float32)
    found: NDArray[np.int64] = np.minimum(np.floor(positions).astype(np.int64), size - 1)
    return found


def _neighbours(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Image, Image]:
    """Left and right neighbour of each new voxel, and their weights."""
    if size == new_size:
        same = np.arange(size)
        return same, same, np.ones(size, np.float32), np.zeros(size, np.float32)
    positions = _positions(size, new_size)
    left = np.minimum(np.floor(positions).astype(np.int64), size - 1)
    weight = np.clip(positions - left.astype(np.float32), np.float32(0), np.float32(1))
    return left, np.minimum(left + 1, size - 1), np.float32(1) - weight, weight


def _fused(first: Image, second: Image, summand: Image) -> Image:
    """``first * second + summand`` with one rounding."""
    return (first.astype(np.float64) * second + summand).astype(np.float32)


def _along(volume: Image, axis: int, new_size: int) -> Image:
    if volume.shape[axis] == new_size:
        return volume
    left, right, left_weight, right_weight = _neighbours(volume.shape[axis], new_size)
    shape = [1] * volume.ndim
    shape[axis] = new_size
    product = np.take(volume, right, axis) * right_weight.reshape(shape)
    return _fused(np.take(volume, left, axis), left_weight.reshape(shape), product)


def _weighted_corners(plane: Image, shape: Sequence[int], vectorised: bool) -> Image:
    """Four products with four weights, in the orders in which the two loops of the kernel add them."""
    top, bottom, top_weight, bottom_weight = _neighbours(plane.shape[0], shape[0])
    left, right, left_weight, right_weight = _neighbours(plane.shape[1], shape[1])
    corners = [
        (plane[np.ix_(row, column)], row_weight[:, None] * column_weight)
        for row, row_weight in ((top, top_weight), (bottom, bottom_weight))
        for column, column_weight in ((left, left_weight), (right, right_weight))
    ]
    first, *others = (2, 3, 1, 0) if vectorised else (1, 0, 2, 3)
    total: Image = corners[first][0] * corners[first][1]
    for corner in others:
        total = _fused(*corners[corner], total)
    return total
