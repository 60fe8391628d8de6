"""Voxel grids in patient space (millimetres, LPS as in SimpleITK): compare them, test overlap."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Size (voxels), spacing (mm), origin (mm) and direction cosines (row-major 3x3) in SimpleITK's x, y, z order.

    Of a sheared affine the three directions are not at right angles.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> Grid:
        """The spatial grid of a 2D or 3D image, or of the volumes of a 4D one."""
        full = image.GetDimension()
        return cls._padded(
            image.GetSize()[:3], image.GetSpacing()[:3], image.GetOrigin()[:3],
            np.asarray(image.GetDirection()).reshape(full, full)[:3, :3],
        )  # fmt: skip

    @classmethod
    def of_affine(cls, shape: Sequence[int], affine: NDArray[np.float64]) -> Grid:
        """The grid of a NIfTI image.

        Args:
            shape: voxels along x, y, z.
            affine: (4, 4), index to mm in RAS, as nibabel has it.
        """
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=float)
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        return cls._padded(shape[:3], spacing, lps[:3, 3], lps[:3, :3] / np.where(spacing > 0, spacing, 1))

    @classmethod
    def of_properties(cls, shape: Sequence[int], properties: Mapping[str, Any]) -> Grid:
        """The grid of what one of nnU-Net's readers has read; without place and direction, where the format has none.

        Args:
            shape: of the array (Z, Y, X).
            properties: of the same reader.
        """
        size = tuple(shape)[::-1]
        if stuff := properties.get("sitk_stuff"):
            dimensions = len(stuff["spacing"])
            direction = np.asarray(stuff["direction"]).reshape(dimensions, dimensions)
            return cls._padded(size[:dimensions], stuff["spacing"], stuff["origin"], direction)
        if stuff := properties.get("nibabel_stuff"):
            if "original_affine" in stuff and "reoriented_affine" not in stuff:
                return cls.of_affine(size, stuff["original_affine"])
            return cls.of_affine(size, stuff["reoriented_affine"])
        return cls._padded(size, tuple(properties["spacing"])[::-1], (0.0,) * 3, np.eye(3))

    @classmethod
    def _padded(
        cls, size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: NDArray[np.float64]
    ) -> Grid:
        """Two dimensions are one slice of three."""
        more = 3 - len(size)
        cosines = np.eye(3)
        cosines[: len(size), : len(size)] = direction
        return cls(
            (*(int(n) for n in size), *(1,) * more),
            (*(float(v) for v in spacing), *(1.0,) * more),
            (*(float(v) for v in origin), *(0.0,) * more),
            tuple(float(v) for v in cosines.ravel()),
        )

    def reoriented(self, order: Sequence[int], flipped: Sequence[bool]) -> Grid:
        """The same voxels along other axes.

        Args:
            order: which axis becomes the first, the second and the third.
            flipped: of the new axes, those that run the other way.
        """
        matrix, origin = self.index_to_mm()
        cosines = np.asarray(self.direction).reshape(3, 3)[:, list(order)]
        for axis, own in enumerate(order):
            if flipped[axis]:
                origin = origin + matrix[:, own] * (self.size[own] - 1)
                cosines[:, axis] *= -1
        size, spacing = tuple(self.size[axis] for axis in order), tuple(self.spacing[axis] for axis in order)
        return Grid(size, spacing, tuple(origin.tolist()), tuple(cosines.ravel().tolist()))

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

    def largest_shift(self, other: Grid) -> float:
        """How far the same voxel lies apart in two grids of one size, at most (mm); it does at a corner."""
        (matrix, offset), (other_matrix, other_offset) = self.index_to_mm(), other.index_to_mm()
        corners = np.array(list(itertools.product(*((0, n - 1) for n in self.size))), dtype=float)
        apart = corners @ (matrix - other_matrix).T + offset - other_offset
        return float(np.linalg.norm(apart, axis=1).max())

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


def _words(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
