"""nnU-Net's readers and writers by name; each module is imported when a file of its kind comes."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.volume import Geometry, Volume, check_same_grid, stack

_ITK_NIFTI = ("itk_nifti", "read", "write")
_ITK = ("other_formats", "read_itk", "write_itk")
_PICTURE = ("other_formats", "read_picture", "write_picture")
_TIFF = ("other_formats", "read_tiff", "write_tiff")

READERS: dict[str, dict[str, tuple[str, str, str]]] = {
    "SimpleITKIO": {
        ".nii.gz": _ITK_NIFTI,
        ".nii": _ITK_NIFTI,
        ".nrrd": _ITK,
        ".mha": _ITK,
        ".mhd": _ITK,
        ".gipl": _ITK,
    },
    "NibabelIO": dict.fromkeys((".nii.gz", ".nii"), ("nibabel_nifti", "read", "write")),
    "NibabelIOWithReorient": dict.fromkeys(
        (".nii.gz", ".nii"), ("nibabel_nifti", "read_reoriented", "write_reoriented")
    ),
    "NaturalImage2DIO": dict.fromkeys((".png", ".bmp", ".tif"), _PICTURE),
    "Tiff3DIO": dict.fromkeys((".tif", ".tiff"), _TIFF),
}
"""nnU-Net's class name: file ending: module, reading function, writing function."""


def prepare(reader: str, ending: str) -> None:
    """Import what reads and writes a model's files, so that the first case does not wait for it.

    Raises:
        DataError: the reader does not read this ending.
    """
    _functions(reader, ending)


def read_case(reader: str, ending: str, paths: Sequence[Path]) -> Volume:
    """Read a case's files as one volume.

    Args:
        reader: one of :data:`READERS`.
        ending: of the model's images.
        paths: a file a channel.

    Raises:
        DataError: damaged, not an image of this reader, channels on different grids.
        MissingRequirement: the format needs an extra.
    """
    module, read, _ = _functions(reader, ending)
    for path in paths:
        check_name(path)
        check_whole(path)
    function: Callable[[Path], Volume] = getattr(module, read)
    return stack([function(path) for path in paths], paths)


def read_geometry(reader: str, ending: str, paths: Sequence[Path]) -> Geometry | None:
    """The grid of a case from its files' headers, or ``None`` for formats whose headers come with the voxels.

    Raises:
        DataError: a header is damaged, or channels lie on different grids.
    """
    module, read, _ = _functions(reader, ending)
    for path in paths:
        check_name(path)
    geometry: Callable[[Path], Geometry] | None = getattr(module, read.replace("read", "geometry"), None)
    if geometry is None:
        return None
    geometries = [geometry(path) for path in paths]
    check_same_grid(geometries, paths)
    return geometries[0]


def write_segmentation(
    reader: str, ending: str, segmentation: NDArray[Any], path: Path, properties: dict[str, Any]
) -> None:
    """Write labels as the reader's writer does.

    Args:
        reader, ending: see :func:`read_case`.
        segmentation: ``(z, y, x)``, axes as the reader gave them.
        path: the file, which ends in ``ending``.
        properties: of the image's :class:`~nnunet_kd_runtime.volume.Volume`.
    """
    module, _, write = _functions(reader, ending)
    getattr(module, write)(segmentation, path, properties)


def check_name(path: Path) -> None:
    """Refuse names with bytes that are no text, on which SimpleITK ends the process.

    Raises:
        DataError: see above.
    """
    encoding = sys.getfilesystemencoding()
    try:
        str(path).encode(encoding)
    except UnicodeEncodeError as error:
        told = os.fsencode(path).decode(encoding, "backslashreplace")
        raise DataError(
            f"{told} has a name that is not {encoding}, so libraries cannot open it. Rename that file or folder."
        ) from error


def check_whole(path: Path) -> None:
    """Read a gzip file to its end and compare its checksum: a truncated one would be read in part.

    Raises:
        DataError: it is truncated or damaged.
    """
    if path.suffix != ".gz":
        return
    try:
        with path.open("rb") as plain:
            if plain.read(2) != b"\x1f\x8b":
                return
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read to its end: {error}.") from error


def _functions(reader: str, ending: str) -> tuple[Any, str, str]:
    formats = READERS[reader]
    if ending.lower() not in formats:
        raise DataError(
            f"nnU-Net's {reader} does not read files ending in {ending} here; it reads {', '.join(formats)}. The model's "
            f"dataset.json asks for that ending."
        )
    module, read, write = formats[ending.lower()]
    return import_module(f"nnunet_kd_runtime.{module}"), read, write
