"""Signs that an image is not of the kind that a model was trained on, in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

GEOMETRY = ("voxel size", "extent")
"""Signs that every image is looked at for; intensities are read of some."""
FAR = 3.0
"""Spacing or extent that is so many times the training data's median, or less by it, is far from it."""
WITHIN = 0.01
"""Share of an image's voxels that must have intensities as the training data's foreground had."""
LEAST_CORRELATION = 0.1
"""Of neighbouring voxels along the axis where it is highest. Images of patients have far more, independent noise has none."""
FEWEST_VOXELS = 1000
"""From which a correlation says something: its chance error is then 0.03."""


def strange_geometry(shape: Sequence[int], spacing: Sequence[float], plans: Mapping[str, Any]) -> dict[str, str]:
    """In what an image's voxels and extent are far from the training data's median.

    Args:
        shape, spacing: voxels and mm, in the file's axes (Z, Y, X).
        plans: of the model.
    """
    order = plans["transpose_forward"]
    usual_spacing = plans.get("original_median_spacing_after_transp")
    usual_shape = plans.get("original_median_shape_after_transp")
    if usual_spacing is None or usual_shape is None:
        return {}
    own_spacing, own_shape = [spacing[axis] for axis in order], [shape[axis] for axis in order]
    # pictures are one slice of 999 mm
    axes = [axis for axis in range(len(order)) if usual_shape[axis] > 1 and own_shape[axis] > 1]
    found = {}
    if any(_far(own_spacing[axis], usual_spacing[axis]) for axis in axes):
        found[GEOMETRY[0]] = f"{_mm(own_spacing)} mm, and the model's training data {_mm(usual_spacing)} mm"
    own = [step * count for step, count in zip(own_spacing, own_shape, strict=True)]
    usual = [step * count for step, count in zip(usual_spacing, usual_shape, strict=True)]
    if any(_far(own[axis], usual[axis]) for axis in axes):
        found[GEOMETRY[1]] = f"{_mm(own)} mm, and the model's training data {_mm(usual)} mm"
    return found


def strange_intensities(image: np.ndarray, plans: Mapping[str, Any], channels: Sequence[str]) -> dict[str, str]:
    """Channels in which hardly any voxel has an intensity as the training data's foreground had.

    Args:
        image: ``(channels, *spatial)``.
        plans: of the model; says percentiles of the foreground.
        channels: names.
    """
    found = {}
    statistics = plans.get("foreground_intensity_properties_per_channel") or {}
    for number, (values, name) in enumerate(zip(image, channels, strict=True)):
        own = statistics.get(str(number))
        inside = values[np.isfinite(values) & (values != 0)]
        if not own or inside.size == 0:
            continue
        low, high = own["percentile_00_5"], own["percentile_99_5"]
        if np.mean((inside >= low) & (inside <= high)) < WITHIN:
            first, last = np.percentile(inside, [0.5, 99.5])
            found[f"intensities of {name}" if len(channels) > 1 else "intensities"] = (
                f"{first:.4g} to {last:.4g}, and in the foreground of the model's training data {low:.4g} to {high:.4g}"
            )
    return found


def strange_texture(image: np.ndarray, channels: Sequence[str]) -> dict[str, str]:
    """Channels in which neighbouring voxels have nothing to do with each other, as in noise.

    Args:
        image: ``(channels, *spatial)``.
        channels: names.
    """
    found = {}
    for values, name in zip(image, channels, strict=True):
        if values.size < FEWEST_VOXELS:
            continue
        highest = max(_correlation(values, axis) for axis in range(values.ndim))
        if highest < LEAST_CORRELATION:
            found[f"texture of {name}" if len(channels) > 1 else "texture"] = (
                f"neighbouring voxels have a correlation of {highest:.2f}, as in noise"
            )
    return found


def _correlation(values: np.ndarray, axis: int) -> float:
    """Of neighbours along an axis; -1 where there are none, 1 where nothing varies."""
    count = values.shape[axis]
    if count < 2:
        return -1.0
    first = np.take(values, range(count - 1), axis).ravel().astype(np.float64)
    second = np.take(values, range(1, count), axis).ravel().astype(np.float64)
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt(first @ first) * np.sqrt(second @ second))
    return float(first @ second) / size if size > 0 else 1.0


def _far(own: float, usual: float) -> bool:
    return not usual / FAR <= own <= usual * FAR


def _mm(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
