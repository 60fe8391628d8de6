"""``skimage.transform.resize`` as nnU-Net calls it, with SciPy alone, which is imported when something is resized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def resize(image: Array, shape: Sequence[int], order: int) -> Array:
    """``resize(image, shape, order, mode="edge", anti_aliasing=False)``: a spline through voxel centres.

    Args:
        image: two or three axes.
        shape: voxels an axis.
        order: of the spline, 0 to 5.

    Returns:
        Values within the image's range, which splines of higher order leave otherwise.
    """
    from scipy import ndimage

    factors = np.divide(image.shape, shape)
    resized: Array = ndimage.zoom(
        image, [1 / factor for factor in factors], order=order, mode="nearest", grid_mode=True
    )
    np.clip(resized, image.min(), image.max(), out=resized)
    return resized


def nearest_along(image: Array, axis: int, size: int) -> Array:
    """``map_coordinates`` of order 0 where only one axis changes, as nnU-Net takes it for the separate axis."""
    positions = float(image.shape[axis]) / size * (np.arange(size) + 0.5) - 0.5
    positions = np.clip(positions, 0, image.shape[axis] - 1)
    taken: Array = np.take(image, np.floor(positions + 0.5).astype(np.int64), axis)
    return taken


def spline_along(image: Array, axis: int, size: int, order: int) -> Array:
    """``map_coordinates`` of any order where only one axis changes."""
    if order == 0:
        return nearest_along(image, axis, size)
    from scipy import ndimage

    shape = list(image.shape)
    shape[axis] = size
    scale = np.array(image.shape, float) / shape
    grid = np.indices(shape, float)
    for coordinates, factor in zip(grid, scale, strict=True):
        coordinates += 0.5
        coordinates *= factor
        coordinates -= 0.5
    moved: Array = ndimage.map_coordinates(image, grid, order=order, mode="nearest")
    return moved
