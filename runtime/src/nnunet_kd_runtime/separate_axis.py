"""Which axis nnU-Net resamples on its own: the one whose voxels are much longer than the others'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ANISOTROPY = 3.0
"""nnU-Net's ``ANISO_THRESHOLD``: how many times the longest voxel edge must exceed the shortest."""


def separate_axis(
    force: bool | None,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    threshold: float = ANISOTROPY,
) -> int | None:
    """nnU-Net's ``determine_do_sep_z_and_axis``.

    Args:
        force: always (``True``), never (``False``), or by the spacings (``None``).
        current_spacing, new_spacing: millimetres, axis by axis.
        threshold: see :data:`ANISOTROPY`.

    Returns:
        The axis, or ``None`` when all axes are resampled together: also where two or three share the longest edge.
    """
    if force is not None:
        axes = _longest(current_spacing) if force else None
    elif _anisotropic(current_spacing, threshold):
        axes = _longest(current_spacing)
    elif _anisotropic(new_spacing, threshold):
        axes = _longest(new_spacing)
    else:
        axes = None
    return int(axes[0]) if axes is not None and len(axes) == 1 else None


def _anisotropic(spacing: Sequence[float], threshold: float) -> bool:
    return bool(np.max(spacing) / np.min(spacing) > threshold)


def _longest(spacing: Sequence[float]) -> np.ndarray:
    return np.where(max(spacing) / np.array(spacing) == 1)[0]
