"""Sliding window over a preprocessed image: where patches lie, how they are weighed, mirrored and added up.

Sums are kept in float16 as nnU-Net keeps them: each addition is made in float32 and rounded. That the sums of two programs are
equal to the last bit is what makes their segmentations equal, because voxels at a boundary are often ties in float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError

Patch = NDArray[np.float32]
Network = Callable[[Patch], Patch]
Slices = tuple[Any, ...]
LARGEST_WEIGHT = 10.0
SIGMA = 1 / 8
"""Of the Gaussian, as a share of the patch."""
TRUNCATE = 4.0
"""SciPy's Gaussian filter ends after this many sigmas."""


def gaussian_weights(patch_size: Sequence[int]) -> NDArray[np.float16]:
    """Weights of a patch's voxels: a Gaussian with 10 in the middle, nowhere zero.

    nnU-Net filters a single point with ``scipy.ndimage.gaussian_filter``. Of a point that is the product of its kernels, to
    the last bit. To import SciPy's filters takes longer than everything else that a small case needs. PyTorch converts
    float64 to float16 by way of float32; so does this, for the same roundings.
    """
    weights = np.ones(())
    for size in patch_size:  # in this order, which decides the last bit
        weights = weights[..., None] * _filtered_point(size, size * SIGMA)
    weights /= np.max(weights) / LARGEST_WEIGHT
    half: NDArray[np.float16] = weights.astype(np.float32).astype(np.float16)
    half[half == 0] = half[half != 0].min()
    return half


def _filtered_point(size: int, sigma: float) -> NDArray[np.float64]:
    """What ``gaussian_filter1d(..., mode="constant")`` makes of a one in the middle of ``size`` zeros."""
    radius = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    kernel /= kernel.sum()
    distance = np.arange(size) - size // 2
    return np.where(np.abs(distance) <= radius, kernel[np.clip(distance + radius, 0, 2 * radius)], 0.0)


def window_starts(image_size: Sequence[int], patch_size: Sequence[int], step: float) -> list[list[int]]:
    """First voxels of the windows along each axis: evenly spread, at most ``step`` patches apart.

    Args:
        image_size: voxels an axis, at least the patch's.
        patch_size: voxels an axis.
        step: 0 to 1.
    """
    starts = []
    for size, side in zip(image_size, patch_size, strict=True):
        count = int(np.ceil((size - side) / (side * step))) + 1
        distance = (size - side) / (count - 1) if count > 1 else 0.0
        starts.append([int(np.round(distance * index)) for index in range(count)])
    return starts


def windows(image_size: Sequence[int], patch_size: Sequence[int], step: float) -> list[Slices]:
    """Places of the patches in nnU-Net's order; a 2D network takes each slice of the first axis."""
    if len(patch_size) < len(image_size):
        starts = window_starts(image_size[1:], patch_size, step)
        return [
            (plane, *(slice(start, start + side) for start, side in zip(corner, patch_size, strict=True)))
            for plane in range(image_size[0])
            for corner in product(*starts)
        ]
    return [
        tuple(slice(start, start + side) for start, side in zip(corner, patch_size, strict=True))
        for corner in product(*window_starts(image_size, patch_size, step))
    ]


def predict_mirrored(network: Network, patch: Patch, mirror_axes: Sequence[int]) -> Patch:
    """Mean logits of a patch and its mirror images.

    Args:
        network: ``(1, channels, *patch)`` to ``(1, heads, *patch)``.
        patch: as the network takes it.
        mirror_axes: of the patch; none: no mirroring.
    """
    total = network(patch)
    mirrored = [axes for count in range(len(mirror_axes)) for axes in combinations(mirror_axes, count + 1)]
    for axes in mirrored:
        flipped = tuple(axis + 2 for axis in axes)
        total += np.flip(network(np.ascontiguousarray(np.flip(patch, flipped))), flipped)
    if mirrored:
        total /= np.float32(len(mirrored) + 1)
    return total


def pad_to(image: NDArray[Any], patch_size: Sequence[int]) -> tuple[NDArray[Any], Slices]:
    """Pad with zeros on both sides to at least the patch, the larger half above; a 2D network's slices are not padded.

    Args:
        image: ``(channels, *spatial)``.
        patch_size: of the last axes.

    Returns:
        The padded image, and the slices of ``spatial`` that undo it.
    """
    spatial = image.shape[1:]
    wanted = (*spatial[: len(spatial) - len(patch_size)], *patch_size)
    missing = [max(0, side - size) for side, size in zip(wanted, spatial, strict=True)]
    inner = tuple(slice(gap // 2, gap // 2 + size) for gap, size in zip(missing, spatial, strict=True))
    if not any(missing):
        return image, inner
    return np.pad(image, [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing)]), inner


def predict_logits(
    network: Network,
    image: NDArray[np.float32],
    patch_size: Sequence[int],
    heads: int,
    mirror_axes: Sequence[int] = (),
    step: float = 0.5,
    progress: Callable[[float], None] = lambda share: None,
    allocate: Callable[[tuple[int, ...]], NDArray[np.float16]] = lambda shape: np.zeros(shape, np.float16),
) -> NDArray[np.float16]:
    """Logits of a whole image.

    Args:
        network: see :func:`predict_mirrored`.
        image: ``(channels, *spatial)`` float32, preprocessed.
        patch_size: voxels a side.
        heads: channels of the network's output.
        mirror_axes: of the patch.
        step: distance of patches as a share of the patch.
        progress: told the share of the image (0 to 1) predicted since it was last told.
        allocate: gives zeros of a shape; on disk if memory is short.

    Returns:
        ``(heads, *spatial)`` float16.

    Raises:
        DataError: a logit is beyond float16, where nnU-Net stops, too.
    """
    padded, inner = pad_to(image, patch_size)
    weights = gaussian_weights(patch_size)
    float_weights = weights.astype(np.float32)
    places = windows(padded.shape[1:], patch_size, step)
    total = allocate((heads, *padded.shape[1:]))
    weight_sum = np.zeros(padded.shape[1:], np.float16)
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below
        for place in places:
            everywhere = (slice(None), *place)
            patch = np.ascontiguousarray(padded[everywhere])[None]
            prediction = predict_mirrored(network, patch, mirror_axes)[0]
            prediction *= float_weights
            prediction += total[everywhere]
            total[everywhere] = prediction
            weight_sum[place] += weights
            progress(1 / len(places))
        for channel in total:
            np.divide(channel, weight_sum, out=channel)
            if np.isinf(channel).any():
                raise DataError(
                    "the network gives logits beyond float16 (65504), where nnU-Net stops, too. Are the image's intensities "
                    "in the unit that the model was trained with?"
                )
    return total[(slice(None), *inner)]
