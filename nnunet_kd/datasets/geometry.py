"""Resample images between voxel grids, by their headers alone."""

from __future__ import annotations

import SimpleITK as sitk

from nnunet_kd.volumes.grid import Grid


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
