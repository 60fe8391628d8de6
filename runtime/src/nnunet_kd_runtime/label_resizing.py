"""Label maps on another grid: each label's indicator is interpolated, the largest one wins.

What batchgenerators' ``resize_segmentation`` gives (0.25.5), which nnU-Net uses for a cascade's previous stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.resizing import resize


def resize_labels(labels: NDArray[np.float64], shape: Sequence[int], order: int) -> NDArray[np.float64]:
    """Resize a label map without making labels up.

    Where several indicators share the largest value, the nearest voxel's label wins if it is one of them, else the
    smallest.

    Args:
        labels: whole numbers, two or three axes.
        shape: voxels an axis.
        order: of the spline; 0 takes the nearest voxel.
    """
    nearest = resize(labels, shape, 0)
    if order == 0:
        return nearest
    present = np.unique(labels)
    if len(present) == 1:
        return np.full(shape, present[0], labels.dtype)
    best = resize((labels == present[0]).astype(float), shape, order)
    winner = np.full(shape, present[0], labels.dtype)
    nearest_leads = (nearest == present[0]) & (best > 0)
    for label in present[1:]:
        score = resize((labels == label).astype(float), shape, order)
        is_nearest = nearest == label
        nearest_leads |= (score == best) & (score > 0) & is_nearest
        better = score > best
        nearest_leads[better] = is_nearest[better]
        winner[better] = label
        np.maximum(best, score, out=best)
    winner[nearest_leads] = nearest[nearest_leads]
    return winner
