"""Read volumes with the reader that the dataset names, whole files only."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from nibabel.orientations import io_orientation
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_kd.errors import DataError
from nnunet_kd.nnunet.readers import library_of, orientation_of, reader_named, reader_of_dataset
from nnunet_kd.system.names import check_name
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.naming import NIFTI_ENDINGS, shadow_of
from nnunet_kd.volumes.wholeness import check_whole, error_line, find_damage, stored_voxels

Read = tuple[NDArray[Any], dict[str, Any]]
"""What nnU-Net's readers return: an array (channels, Z, Y, X) and properties."""

WHOLE_NUMBER_TOLERANCE = 1e-3
"""Labels this close to a whole number are that number, stored by a program that computes in single precision."""


def dataset_reader(
    dataset_json: Mapping[str, Any], plans: Mapping[str, Any] | None = None, examples: Sequence[Path] = ()
) -> BaseReaderWriter:
    """The reader of a dataset: its plan's, else the one ``dataset.json`` names, else nnU-Net's choice by ending.

    Args:
        dataset_json: nnU-Net's; ``file_ending`` is needed.
        plans: a plan of the dataset, if there is one.
        examples: files of the dataset. nnU-Net chooses the first reader that opens the first of them that is whole.

    Raises:
        DataError: nnU-Net has no such reader, or none for the ending.
    """
    ending = str(dataset_json["file_ending"])
    named = (plans or {}).get("image_reader_writer")
    whole = next((path for path in examples if find_damage(path) is None), None)
    try:
        return reader_named(named) if named else reader_of_dataset(dataset_json, whole)
    except RuntimeError as error:
        if whole is not None and not named:  # no reader opens the example; which files cannot be read is told later
            return dataset_reader(dataset_json)
        raise DataError(
            f"nnU-Net has no reader {named or f'for files that end in {ending}'}. "
            f"Is the extension that brought it installed in this environment?"
        ) from error


def check_alone(path: Path, reader: BaseReaderWriter) -> None:
    """Whether a file is the one that the reader will take its voxels from, by the names beside it.

    Raises:
        DataError: it is not.
    """
    check_name(path)
    other = None if library_of(reader) == "nibabel" else shadow_of(path)
    if other is not None:
        raise DataError(
            f"{path} and {other.name} lie side by side. Asked for the first, ITK reads the voxels of the second, so the result "
            f"would be of another file. Move one of them away."
        )


def check_file(path: Path, reader: BaseReaderWriter) -> None:
    """:func:`check_alone`, and :func:`nnunet_kd.volumes.wholeness.check_whole`.

    Raises:
        DataError: see there.
    """
    check_alone(path, reader)
    check_whole(path)


def read_images(paths: Sequence[Path], reader: BaseReaderWriter) -> Read:
    """One case's images, one file a channel.

    Raises:
        DataError: a file is not whole or cannot be read.
    """
    for path in paths:
        check_file(path, reader)
    with reading(", ".join(map(str, paths))):
        array, properties = reader.read_images([str(path) for path in paths])
    return array, properties


def read_segmentation(path: Path, reader: BaseReaderWriter) -> Read:
    """A segmentation as it is stored; see :func:`whole_numbers`.

    Raises:
        DataError: the file is not whole or cannot be read.
    """
    check_file(path, reader)
    with reading(str(path)):
        array, properties = reader.read_seg(str(path))
    return array, properties


def voxels_without_number(path: Path, reader: BaseReaderWriter) -> int:
    """How many stored voxels of a whole file are NaN or infinite; looked at as they are stored, before a reader replaces them.

    Raises:
        DataError: the file cannot be read.
    """
    with reading(str(path)):
        nifti = path.name.lower().endswith(NIFTI_ENDINGS)
        array = stored_voxels(path) if nifti else reader.read_images([str(path)])[0]
    if not np.issubdtype(array.dtype, np.inexact):
        return 0
    return int(array.size - np.isfinite(array).sum())


def whole_numbers(labels: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Labels rounded to whole numbers, and how far the farthest was away; unchanged if that is beyond the tolerance."""
    if np.issubdtype(labels.dtype, np.integer):
        return labels, 0.0
    rounded = np.rint(labels)
    with np.errstate(invalid="ignore"):
        distance = float(np.abs(labels - rounded).max(initial=0))
    return (rounded, distance) if distance <= WHOLE_NUMBER_TOLERANCE else (labels, distance)


class Header(NamedTuple):
    """What a file says before its voxels are read.

    Attributes:
        grid: of the array that the reader makes of it; ``None`` for pictures, which have none.
        channels: that it holds.
        dimensions: of the file, channels included.
        components: numbers a voxel; more than one are vectors or colours.
    """

    grid: Grid | None
    channels: int
    dimensions: int
    components: int = 1


def header(path: Path, reader: BaseReaderWriter) -> Header | None:
    """Grid and number of channels, without reading voxels where the format allows it.

    Returns:
        ``None``: only reading the file tells.

    Raises:
        DataError: the file cannot be read.
    """
    library = library_of(reader)
    if library in ("itk", "nibabel"):
        with reading(str(path)):
            return _itk_header(path, reader) if library == "itk" else _nibabel_header(path, reader)
    if library == "pictures":
        array, _ = read_images([path], reader)
        return Header(None, array.shape[0], 2)
    return None


def _itk_header(path: Path, reader: BaseReaderWriter) -> Header:
    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    file.ReadImageInformation()
    grid, dimensions = Grid.of(file), file.GetDimension()
    wanted = orientation_of(reader)
    if wanted is not None and dimensions > 2:
        turning = sitk.DICOMOrientImageFilter()
        turning.SetDesiredCoordinateOrientation(wanted)
        voxel = sitk.Image(1, 1, 1, sitk.sitkUInt8)  # which axes are turned, the direction alone decides
        voxel.SetDirection(grid.direction)
        turning.Execute(voxel)
        grid = grid.reoriented(turning.GetPermuteOrder(), turning.GetFlipAxes())
    return Header(grid, file.GetSize()[3] if dimensions == 4 else 1, dimensions, file.GetNumberOfComponents())


def _nibabel_header(path: Path, reader: BaseReaderWriter) -> Header:
    image: Any = nibabel.load(path)
    grid = Grid.of_affine((*image.shape, 1)[:3], image.affine)  # two dimensions are one slice
    if orientation_of(reader) is not None and image.ndim > 2:
        turned = io_orientation(image.affine)[:3]
        order = np.argsort(turned[:, 0])
        grid = grid.reoriented([int(axis) for axis in order], [bool(turned[axis, 1] < 0) for axis in order])
    return Header(grid, image.shape[3] if image.ndim == 4 else 1, image.ndim)


@contextlib.contextmanager
def reading(what: str, failed: str = "cannot be read") -> Iterator[None]:
    """Within, readers may print and fail as they like; what they printed becomes a part of the error.

    Args:
        what: is read, for errors.
        failed: what it is called when it fails.

    Raises:
        DataError: reading failed.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except (DataError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # readers raise whatever their libraries raise
        said = " ".join(printed.getvalue().split())
        raise DataError(f"{what} {failed}: {' '.join(filter(None, (error_line(error), said)))}.") from error
