"""What a reader hands on: an image with the properties that nnU-Net keeps of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError

TOLERANCES = {"spacing": (1e-4, " mm"), "origin": (1e-2, " mm"), "direction": (1e-3, "")}
"""Property: by how much channels of one case may differ, and its unit."""


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie in the patient; axis order as in the file.

    Attributes:
        shape: voxels an axis.
        spacing, origin: millimetres.
        direction: cosines, row by row.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()

    def differences(self, other: Geometry) -> list[str]:
        """What sets ``self`` apart from ``other``, in words."""
        if self.shape != other.shape:
            return [f"shape {_words(self.shape)} instead of {_words(other.shape)}"]
        found = []
        for name, (tolerance, unit) in TOLERANCES.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            off = max((abs(a - b) for a, b in zip(mine, theirs, strict=True)), default=0.0)
            if not off <= tolerance:
                found.append(f"{name} {_words(mine)} instead of {_words(theirs)} (off by {off:.3g}{unit})")
        return found


@dataclass
class Volume:
    """One file, or one case.

    Attributes:
        array: ``(channels, z, y, x)`` float32.
        properties: nnU-Net's: ``spacing`` (z, y, x in millimetres) and what its writer needs.
        geometry: for comparing channels.
    """

    array: NDArray[np.float32]
    properties: dict[str, Any]
    geometry: Geometry = field(repr=False)


def stack(volumes: Sequence[Volume], paths: Sequence[Path]) -> Volume:
    """Channels of one case as one volume with the first one's geometry.

    Raises:
        DataError: one lies on another grid.
    """
    check_same_grid([volume.geometry for volume in volumes], paths)
    arrays = [volume.array for volume in volumes]
    array = np.vstack(arrays, dtype=np.float32, casting="unsafe") if len(arrays) > 1 else arrays[0]
    return Volume(array, volumes[0].properties, volumes[0].geometry)


def check_same_grid(geometries: Sequence[Geometry], paths: Sequence[Path]) -> None:
    """Compare a case's channels.

    Raises:
        DataError: one lies on another grid than the first.
    """
    for geometry, path in zip(geometries, paths, strict=True):
        differences = geometry.differences(geometries[0])
        if differences:
            raise DataError(
                f"{path.name} lies on another grid than {paths[0].name}: {'; '.join(differences)}. All channels must be "
                f"registered and resampled to one grid, as in training."
            )


def smallest_type(segmentation: NDArray[Any]) -> NDArray[Any]:
    """The segmentation as uint8, or as uint16 if a label needs it; nnU-Net's writers decide so."""
    wanted = np.uint8 if segmentation.max() < 255 else np.uint16
    return segmentation.astype(wanted, copy=False)


def _words(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
