from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_kd.datasets.geometry import resample
from nnunet_kd.volumes.grid import Grid

UNIT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def test_tolerances_and_words() -> None:
    grid = Grid((10, 10, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), UNIT)
    assert Grid((10, 10, 10), (1.00005, 1.0, 1.0), (0.009, 0.0, 0.0), UNIT).differences(grid) == []
    (text,) = Grid((10, 10, 10), (1.0, 1.0, 1.0), (0.0, 0.02, 0.0), UNIT).differences(grid)
    assert text == "origin (0, 0.02, 0) instead of (0, 0, 0) (off by 0.02 mm)"
    assert len(Grid((10, 9, 10), (1.0, 1.1, 1.0), (1.0, 0.0, 0.0), (-1.0, *UNIT[1:])).differences(grid)) == 4
    assert Grid((10, 10, 10), (float("nan"), 1.0, 1.0), (0.0, 0.0, 0.0), UNIT).differences(grid)


@pytest.mark.parametrize(("gap", "expected"), [(-0.01, True), (0.01, False)])
def test_overlap_is_exact_to_the_outer_faces(gap: float, expected: bool) -> None:
    first = Grid((10, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), UNIT)  # faces at -1 and 19
    second = Grid((4, 4, 4), (1.0, 1.0, 1.0), (19.5 + gap, 0.0, 0.0), UNIT)  # face half a voxel before the origin
    assert first.overlaps(second) is expected
    assert second.overlaps(first) is expected


def test_turned_boxes_of_which_only_the_bounding_boxes_overlap() -> None:
    turn = np.sqrt(0.5)
    diamond = (turn, -turn, 0.0, turn, turn, 0.0, 0.0, 0.0, 1.0)
    first = Grid((10, 10, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), UNIT)
    # corner of the diamond's bounding box inside the square, its edge beyond the square's corner (9.5, 9.5)
    assert not Grid((10, 10, 10), (1.0, 1.0, 1.0), (14.0, 8.0, 0.0), diamond).overlaps(first)
    assert Grid((10, 10, 10), (1.0, 1.0, 1.0), (8.0, 8.0, 0.0), diamond).overlaps(first)


def test_resample_types_and_half_voxel() -> None:
    image = sitk.GetImageFromArray(np.arange(8, dtype=np.int16).reshape(1, 1, 8) * 10)
    grid = Grid((7, 1, 1), (1.0, 1.0, 1.0), (0.5, 0.0, 0.0), UNIT)
    linear = resample(image, grid, nearest=False)
    assert linear.GetPixelID() == sitk.sitkFloat32
    assert sitk.GetArrayFromImage(linear).ravel().tolist() == [5, 15, 25, 35, 45, 55, 65]
    assert resample(image, grid, nearest=True).GetPixelID() == sitk.sitkInt16


def test_grid_of_a_4d_image_is_that_of_its_volumes() -> None:
    volume = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.float32))
    volume.SetOrigin((1, 2, 3))
    volume.SetSpacing((0.5, 0.6, 0.7))
    volume.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    assert Grid.of(sitk.JoinSeries([volume, volume])) == Grid.of(volume)
