"""Formats that need an extra: what SimpleITK reads besides NIfTI, pictures, and 3D TIFF."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError, SegmentationError
from nnunet_kd_runtime.extras import require
from nnunet_kd_runtime.volume import Geometry, Volume, smallest_type

GIPL_HEADER_BYTES = 256
TIFF_LAYOUTS = {42: ("I", "H", 12), 43: ("Q", "Q", 20)}
"""By version (TIFF, BigTIFF): formats of an offset and of a page's number of tags, and bytes a tag."""


def read_itk(path: Path) -> Volume:
    """nrrd, mha, mhd or gipl through SimpleITK, as nnU-Net's SimpleITKIO reads them.

    Raises:
        MissingRequirement: the extra itk is not installed.
        DataError: damaged, or neither 2D nor 3D.
    """
    sitk = require("SimpleITK", f"reading {path.name}")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path} cannot be read as an image: {reason}.") from error
    array = sitk.GetArrayFromImage(image)
    if path.suffix.lower() == ".gipl":  # which ITK fills up with zeros; of the other formats it says so itself
        expected, found = GIPL_HEADER_BYTES + array.nbytes, path.stat().st_size
        if found < expected:
            raise DataError(f"{path} is not whole: it holds {found} of the {expected} bytes that its header announces.")
    dimensions = image.GetDimension()
    if dimensions not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(
            f"{path} has the shape {array.shape}; nnU-Net's SimpleITKIO takes 2D and 3D images of one channel."
        )
    geometry = Geometry(
        tuple(image.GetSize()), tuple(image.GetSpacing()), tuple(image.GetOrigin()), tuple(image.GetDirection())
    )
    itk = {"spacing": geometry.spacing, "origin": geometry.origin, "direction": geometry.direction}
    spacing = [abs(value) for value in geometry.spacing[::-1]]
    if dimensions == 2:
        spacing = [max(spacing) * 999, *spacing]
        array = array[None]
    return Volume(array[None].astype(np.float32), {"sitk_stuff": itk, "spacing": spacing}, geometry)


def write_itk(segmentation: NDArray[Any], path: Path, properties: dict[str, Any]) -> None:
    """See :func:`read_itk`."""
    sitk = require("SimpleITK", f"writing {path.name}")
    itk = properties["sitk_stuff"]
    image = sitk.GetImageFromArray(smallest_type(segmentation[0] if len(itk["spacing"]) == 2 else segmentation))
    image.SetSpacing(itk["spacing"])
    image.SetOrigin(itk["origin"])
    image.SetDirection(itk["direction"])
    sitk.WriteImage(image, str(path), True)


def read_picture(path: Path) -> Volume:
    """png, bmp or 2D tif, grey or in colours (a channel each), as nnU-Net's NaturalImage2DIO reads them.

    Raises:
        MissingRequirement: the extra images is not installed.
        DataError: damaged, or not a picture.
    """
    array = _load_picture(path)
    if array.ndim == 3 and array.shape[-1] not in (3, 4) and array.shape[0] in (3, 4):
        array = array.transpose(1, 2, 0)  # colours plane by plane, which skimage turns for nnU-Net
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        channels = array.transpose(2, 0, 1)[:, None]
    elif array.ndim == 2:
        channels = array[None, None]
    else:
        raise DataError(f"{path} has the shape {array.shape}; nnU-Net takes grey, RGB and RGBA pictures.")
    values = np.vstack([channels], dtype=np.float32, casting="unsafe")
    return Volume(values, {"spacing": (999, 1, 1)}, Geometry(channels.shape, (1.0, 1.0)))


def write_picture(segmentation: NDArray[Any], path: Path, properties: dict[str, Any]) -> None:
    """Labels as grey values."""
    labels = smallest_type(segmentation[0])
    if path.suffix == ".tif":
        require("tifffile", f"writing {path.name}").imwrite(path, labels)
    else:
        require("imageio.v3", f"writing {path.name}").imwrite(path, labels)


def read_tiff(path: Path) -> Volume:
    """3D tif with its spacing in a JSON beside it (``CASE.json``), as nnU-Net's Tiff3DIO reads it; 1 mm without one.

    Raises:
        MissingRequirement: the extra images is not installed.
        DataError: damaged, not 3D, or the JSON holds no three spacings.
    """
    array = _load_picture(path)
    if array.ndim != 3:
        raise DataError(f"{path} has {array.ndim} dimensions; nnU-Net's Tiff3DIO reads three.")
    beside = path.with_name(path.name[: -len(path.suffix) - len("_0000")] + ".json")
    spacing = _spacing(beside) if beside.is_file() else (1, 1, 1)
    values = np.vstack([array[None]], dtype=np.float32, casting="unsafe")
    return Volume(values, {"spacing": spacing}, Geometry(array.shape, tuple(float(value) for value in spacing)))


def write_tiff(segmentation: NDArray[Any], path: Path, properties: dict[str, Any]) -> None:
    """Labels, and the spacing in a JSON beside them."""
    require("tifffile", f"writing {path.name}").imwrite(path, data=smallest_type(segmentation), compression="zlib")
    path.with_suffix(".json").write_text(
        json.dumps({"spacing": list(properties["spacing"])}, indent=4), encoding="utf-8"
    )


def _spacing(path: Path) -> tuple[float, ...]:
    try:
        spacing = tuple(json.loads(path.read_text(encoding="utf-8"))["spacing"])
        for value in spacing:
            float(value)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no spacing ({error}).") from error
    if len(spacing) != 3:
        raise DataError(f"{path} gives {len(spacing)} spacings instead of three.")
    return spacing


def _load_picture(path: Path) -> NDArray[Any]:
    module = "tifffile" if path.suffix.lower() in (".tif", ".tiff") else "imageio.v3"
    library = require(module, f"reading {path.name}")
    try:
        _check_whole(path)
        array: NDArray[Any] = np.asarray(library.imread(path))
    except (MemoryError, SegmentationError):
        raise
    except Exception as error:  # what the libraries raise of damaged pictures shares no other base
        raise DataError(f"{path} cannot be read as a picture: {error}.") from error
    return array


def _check_whole(path: Path) -> None:
    """What the libraries do not look at when they read: PNG's checksums, and the chain of a TIFF's pages.

    Raises:
        DataError: a part of the file is missing.
        OSError, SyntaxError: Pillow's words for a broken PNG.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == b"\x89PNG":
            with require("PIL.Image", f"reading {path.name}").open(file) as picture:
                picture.verify()
        elif magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            try:
                _walk_pages(file)
            except struct.error as error:
                raise DataError(f"{path} is not whole: it ends before the description of one of its pages.") from error


def _walk_pages(file: BinaryIO) -> None:
    order = "<" if file.read(2) == b"II" else ">"
    (version,) = struct.unpack(f"{order}H", file.read(2))
    offset, count, tag_bytes = TIFF_LAYOUTS[version]
    if version == 43:
        file.seek(8)
    seen: set[int] = set()
    while True:
        (page,) = struct.unpack(f"{order}{offset}", file.read(struct.calcsize(f"={offset}")))
        if page == 0 or page in seen:
            return
        seen.add(page)
        file.seek(page)
        (tags,) = struct.unpack(f"{order}{count}", file.read(struct.calcsize(f"={count}")))
        file.seek(page + struct.calcsize(f"={count}") + tags * tag_bytes)
