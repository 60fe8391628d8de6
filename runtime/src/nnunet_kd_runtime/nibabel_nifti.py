"""NIfTI files as nnU-Net's NibabelIO and NibabelIOWithReorient read and write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.volume import Geometry, Volume, smallest_type


def read(path: Path) -> Volume:
    """Read one file in the order of its axes.

    Raises:
        DataError: damaged, or not of three dimensions.
    """
    image = _load(path)
    return _volume(image, {"original_affine": image.affine}, path)


def read_reoriented(path: Path) -> Volume:
    """Read one file with its axes turned to right, anterior, superior.

    Raises:
        DataError: damaged, or not of three dimensions.
    """
    image = _load(path)
    with _reading(path):
        turned = image.as_reoriented(io_orientation(image.affine))
    return _volume(turned, {"original_affine": image.affine, "reoriented_affine": turned.affine}, path)


def geometry(path: Path) -> Geometry:
    """From the header alone; see :func:`read`."""
    return _geometry(_load(path))


def geometry_reoriented(path: Path) -> Geometry:
    """From the header alone; see :func:`read_reoriented`."""
    image = _load(path)
    with _reading(path):
        orientation = io_orientation(image.affine)
        affine = image.affine @ inv_ornt_aff(orientation, image.shape)
    order = [int(axis) for axis in orientation[:, 0].argsort()]
    zooms = image.header.get_zooms()
    return _grid([image.shape[axis] for axis in order], [zooms[axis] for axis in order], affine)


def write(segmentation: NDArray[Any], path: Path, properties: dict[str, Any]) -> None:
    """Write labels ``(z, y, x)`` with the image's affine."""
    labels = smallest_type(segmentation.transpose(2, 1, 0))
    nibabel.save(nibabel.Nifti1Image(labels, affine=properties["nibabel_stuff"]["original_affine"]), path)


def write_reoriented(segmentation: NDArray[Any], path: Path, properties: dict[str, Any]) -> None:
    """Write labels ``(z, y, x)`` of the turned image in the image's own axes."""
    affines = properties["nibabel_stuff"]
    labels = smallest_type(segmentation.transpose(2, 1, 0))
    image = nibabel.Nifti1Image(labels, affine=affines["reoriented_affine"])
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(affines["original_affine"]))
    nibabel.save(image.as_reoriented(back), path)


def _load(path: Path) -> Any:
    with _reading(path):
        image = nibabel.load(path)
    if image.ndim != 3:
        raise DataError(f"{path} has {image.ndim} dimensions; nnU-Net's NibabelIO reads three.")
    return image


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What nibabel says of damaged headers and voxels: its own errors, NumPy's, zlib's, those of the numbers it meets."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # they share no other base
        raise DataError(f"{path} cannot be read as NIfTI: {error}.") from error


def _volume(image: Any, affines: dict[str, Any], path: Path) -> Volume:
    with _reading(path):
        values = image.get_fdata().transpose(2, 1, 0)
    spacing = [float(size) for size in image.header.get_zooms()[::-1]]
    # float64 to float32 as np.vstack of nnU-Net's reader does it
    array = np.vstack([values[None]], dtype=np.float32, casting="unsafe")
    return Volume(array, {"nibabel_stuff": affines, "spacing": spacing}, _geometry(image))


def _geometry(image: Any) -> Geometry:
    return _grid(image.shape, image.header.get_zooms(), image.affine)


def _grid(shape: Sequence[int], zooms: Sequence[float], affine: NDArray[Any]) -> Geometry:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / np.where(lengths > 0, lengths, 1)
    return Geometry(
        tuple(shape),
        tuple(float(size) for size in zooms),
        tuple(affine[:3, 3].tolist()),
        tuple(direction.ravel().tolist()),
    )
