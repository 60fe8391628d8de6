"""Voxel grids in patient space (millimetres, LPS as in SimpleITK): compare them, test overlap, resample between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.optimize import linprog

SPACING_TOLERANCE = 1e-4
"""Millimetres; over 512 voxels they add up to 0.05 mm."""
ORIGIN_TOLERANCE = 1e-2
"""Millimetres."""
DIRECTION_TOLERANCE = 1e-3
"""Of the direction cosines; 0.06 degrees, a tenth of a millimetre at 100 mm from the origin."""


@dataclass(frozen=True)
class Grid:
    """Size (voxels), spacing (mm), origin (mm) and direction cosines (row-major 3x3) in SimpleITK's x, y, z order."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> Grid:
        """The spatial grid of a 3D image, or of the volumes of a 4D one."""
        full = image.GetDimension()
        direction = np.asarray(image.GetDirection()).reshape(full, full)[:3, :3]
        return cls(
            tuple(int(n) for n in image.GetSize()[:3]),
            tuple(float(v) for v in image.GetSpacing()[:3]),
            tuple(float(v) for v in image.GetOrigin()[:3]),
            tuple(float(v) for v in direction.ravel()),
        )

    def index_to_mm(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``A`` (3, 3) and ``b`` (3,) with ``position = A @ index + b``."""
        return np.asarray(self.direction).reshape(3, 3) * np.asarray(self.spacing), np.asarray(self.origin)

    def differences(self, other: Grid) -> list[str]:
        """What sets ``self`` apart from ``other`` beyond the tolerances, in words; empty if they are the same grid."""
        found = []
        if self.size != other.size:
            found.append(f"shape {_words(self.size)} instead of {_words(other.size)}")
        for name, tolerance, unit in (
            ("spacing", SPACING_TOLERANCE, " mm"),
            ("origin", ORIGIN_TOLERANCE, " mm"),
            ("direction", DIRECTION_TOLERANCE, ""),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            off = float(np.abs(np.subtract(mine, theirs)).max())
            if not off <= tolerance:
                found.append(f"{name} {_words(mine)} instead of {_words(theirs)} (off by {off:.3g}{unit})")
        return found

    def overlaps(self, other: Grid) -> bool:
        """Whether the two boxes of voxels (to the voxels' outer faces) have a common point; exact for oblique boxes."""
        sides, limits = [], []
        for grid in (self, other):
            matrix, offset = grid.index_to_mm()
            to_index = np.linalg.inv(matrix)
            shift = to_index @ offset
            # -0.5 <= to_index @ p - shift <= size - 0.5
            sides += [to_index, -to_index]
            limits += [np.asarray(grid.size) - 0.5 + shift, 0.5 - shift]
        feasible = linprog(
            np.zeros(3),
            A_ub=np.concatenate(sides),
            b_ub=np.concatenate(limits),
            bounds=[(None, None)] * 3,
            method="highs",
        )
        return bool(feasible.status == 0)


def resample(image: sitk.Image, grid: Grid, *, nearest: bool) -> sitk.Image:
    """``image`` in the voxels of ``grid``, by the headers alone (no registration).

    Linear interpolation for images (result float32), nearest neighbour for label maps (type kept); 0 outside ``image``.
    """
    return sitk.Resample(
        image,
        grid.size,
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear,
        grid.origin,
        grid.spacing,
        grid.direction,
        0.0,
        image.GetPixelID() if nearest else sitk.sitkFloat32,
    )


def with_grid(image: sitk.Image, grid: Grid) -> sitk.Image:
    """A copy of ``image`` with exactly the header of ``grid`` (same size)."""
    result = sitk.Image(image)
    result.SetSpacing(grid.spacing)
    result.SetOrigin(grid.origin)
    result.SetDirection(grid.direction)
    return result


def _words(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
