"""From a read image to what the network sees: nnU-Net's ``DefaultPreprocessor`` step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.counts import counted
from nnunet_kd_runtime.description import Model
from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.normalization import normalize

Image = NDArray[np.float32]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Grid:
    """Where a preprocessed image came from; axes in the network's order.

    Attributes:
        spacing: of the image in millimetres.
        target_spacing: that of the network; in the plane for 2D, where slices keep their distance.
        whole: shape before the crop.
        box: the crop.
    """

    spacing: tuple[float, ...]
    target_spacing: tuple[float, ...]
    whole: tuple[int, ...]
    box: Box

    @property
    def cropped(self) -> tuple[int, ...]:
        """Shape after the crop, before resampling."""
        return tuple(side.stop - side.start for side in self.box)

    @property
    def resampled(self) -> tuple[int, ...]:
        """Shape that the network sees, before padding: rounded as Python rounds, halves to even."""
        sides = zip(self.spacing, self.target_spacing, self.cropped, strict=True)
        return tuple(round(old / new * size) for old, new, size in sides)


def crop_to_nonzero(image: Image) -> tuple[NDArray[np.bool_], Box]:
    """The smallest box around voxels that are not zero in any channel; everything for an image of zeros.

    Args:
        image: ``(channels, *spatial)``.

    Returns:
        Which voxels within the box are not zero in any channel, and the box.
    """
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else slice(0, mask.shape[axis]))
    return mask[tuple(box)], tuple(box)


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with its holes filled. The box around it is not changed by that, and nothing outside the box is a hole."""
    from scipy.ndimage import binary_fill_holes  # takes as long to import as all else that a small case needs

    filled: NDArray[np.bool_] = binary_fill_holes(mask)
    return filled


def grid_of(model: Model, shape: Sequence[int], spacing: Sequence[float], box: Box) -> Grid:
    """The grid of an image that is cropped to ``box``; shape and spacing in the network's order."""
    kept = tuple(float(value) for value in spacing)
    target = model.spacing if len(model.spacing) == len(shape) else (kept[0], *model.spacing)
    return Grid(kept, target, tuple(shape), box)


def preprocess(
    model: Model, image: Image, spacing: Sequence[float], previous: NDArray[Any] | None = None
) -> tuple[Image, Grid]:
    """Transpose, crop, normalise, resample, and stack a previous stage's labels on top.

    Args:
        model: says how.
        image: ``(channels, *spatial)`` as the model's reader gives it; not changed.
        spacing: millimetres a spatial axis of ``image``.
        previous: of a cascade: the previous stage's segmentation, ``spatial`` of ``image``.

    Returns:
        ``(input channels, *spatial)`` in the network's axis order, and where it came from.

    Raises:
        DataError: channels, values or shapes that the model cannot take.
    """
    _check(model, image, spacing, previous)
    order = model.transpose_forward
    data = image.astype(np.float32).transpose(0, *[axis + 1 for axis in order])
    turned_spacing = [float(spacing[axis]) for axis in order]
    mask, box = crop_to_nonzero(data)
    grid = grid_of(model, data.shape[1:], turned_spacing, box)
    if min(grid.resampled) < 1:
        raise DataError(
            f"resampled from {_numbers(grid.spacing)} to {_numbers(grid.target_spacing)} mm, the image would have the shape "
            f"{grid.resampled}: too thin for this model."
        )
    data = data[(slice(None), *box)]
    if previous is not None or any(how.use_mask for how in model.normalization):
        mask = without_holes(mask)
    stage: NDArray[Any] | None = None
    inside = mask
    if previous is not None:
        stage = np.array(previous.transpose(order)[box])
        stage[(stage == 0) & ~mask] = -1
        inside = stage >= 0
    for channel, how in enumerate(model.normalization):
        masked = inside if how.use_mask else None
        data[channel] = normalize(how.scheme, data[channel], masked, how.intensities)
    data = model.resampling["data"](data, grid.resampled, grid.spacing, grid.target_spacing)
    if stage is not None:
        stage = model.resampling["seg"](stage[None], grid.resampled, grid.spacing, grid.target_spacing)[0]
        stage = stage.astype(np.int16 if stage.max() > 127 else np.int8)
        data = np.vstack([data, *((stage == label)[None].astype(data.dtype) for label in model.labels.foreground)])
    if data.shape[0] != model.input_channels:
        raise DataError(f"the image gives {counted(data.shape[0], 'channel')}, the model takes {model.input_channels}.")
    return np.ascontiguousarray(data, np.float32), grid


def _check(model: Model, image: Image, spacing: Sequence[float], previous: NDArray[Any] | None) -> None:
    if image.ndim != 4 or len(spacing) != 3:
        raise DataError(
            f"an image has the axes (channel, z, y, x) and three spacings; got {image.ndim} and {len(spacing)}."
        )
    if len(image) != len(model.normalization):
        raise DataError(
            f"the image has {len(image)} channels, but the model takes {len(model.normalization)}: "
            f"{', '.join(model.channels)}."
        )
    if min(image.shape) < 1:
        raise DataError(f"the image is empty: shape {image.shape}.")
    if not all(np.isfinite(value) and value > 0 for value in spacing):
        raise DataError(f"the image's spacing is {_numbers(spacing)} mm; each must be positive.")
    for name, channel in zip(model.channels, image, strict=True):
        wrong = channel.size - int(np.isfinite(channel).sum())
        if wrong:
            raise DataError(
                f"channel {name} has {counted(wrong, 'voxel')} without a number (NaN or infinite). Replace them, usually by 0."
            )
    if model.previous_stage is None and previous is not None:
        raise DataError("a previous stage's segmentation is for cascades; this model is none.")
    if model.previous_stage is not None and previous is None:
        raise DataError(
            f"the model is the second stage of a cascade and needs the segmentation of {model.previous_stage}."
        )
    if previous is not None and previous.shape != image.shape[1:]:
        raise DataError(
            f"the previous stage's segmentation has the shape {previous.shape}, the image {image.shape[1:]}."
        )


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
