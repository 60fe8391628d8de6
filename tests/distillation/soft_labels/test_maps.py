"""What soft labels decide, read from their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_kd.distillation.soft_labels.maps import finds_nothing, open_map, write_map

SHAPE = (40, 6, 6)
PATCH = (8, 6, 6)


def decides_for_nothing(folder: Path, probabilities: np.ndarray, has_regions: bool) -> bool:
    write_map(folder, "a", probabilities, PATCH)
    return finds_nothing(open_map(folder, "a"), has_regions)


@pytest.mark.parametrize(
    ("first", "second", "nothing"),
    [(0.38, 0.2, True), (0.42, 0.2, False), (0.34, 0.34, False), (0.2, 0.2, True), (0.0, 0.9, False)],
)
def test_classes_against_background(tmp_path: Path, first: float, second: float, nothing: bool) -> None:
    """The largest of (background, first, second), in one voxel of the last slab."""
    probabilities = np.zeros((2, *SHAPE), np.float32)
    probabilities[:, 39, 5, 5] = first, second
    assert (int(np.argmax([1 - first - second, first, second])) == 0) is nothing
    assert decides_for_nothing(tmp_path, probabilities, has_regions=False) is nothing


@pytest.mark.parametrize(("probability", "nothing"), [(0.49, True), (0.51, False)])
def test_regions_above_a_half(tmp_path: Path, probability: float, nothing: bool) -> None:
    probabilities = np.zeros((2, *SHAPE), np.float32)
    probabilities[1, 20, 0, 0] = probability
    assert decides_for_nothing(tmp_path, probabilities, has_regions=True) is nothing
