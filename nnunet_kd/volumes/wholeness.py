"""Is a file whole? Looked at byte by byte where the libraries that nnU-Net reads with do not complain themselves.

SimpleITK fills up a NIfTI or GIPL file that was cut short with zeros, and tifffile leaves out the pages of a TIFF whose chain
was cut, both without an error. PNG's checksums are not compared by Pillow when it reads. The other formats that nnU-Net
registers (NRRD, MetaImage, BMP, compressed TIFF) raise an error on their own, which
:mod:`nnunet_kd.volumes.reading` passes on.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from PIL import Image

from nnunet_kd.errors import DataError
from nnunet_kd.system.names import name_as_text, name_problem

GZIP_MAGIC = b"\x1f\x8b"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_LAYOUTS = {42: ("I", "H", 12), 43: ("Q", "Q", 20)}
"""By version (TIFF, BigTIFF): formats of an offset and of a page's number of tags, and bytes a tag."""
_NIFTI_HEADERS = (nibabel.Nifti1Header, nibabel.Nifti2Header)
_NIFTI_HEADER_BYTES = 540
_GIPL_HEADER_BYTES = 256
_BLOCK = 1 << 22
_GZIP_BLOCK = 1 << 16
"""So few that even constant voxels, packed a thousandfold, stay small in memory."""


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, told by its first two bytes: names are often wrong."""
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def check_whole(path: Path) -> None:
    """Read a file to its end, where its format says how much there must be.

    Raises:
        DataError: it cannot be opened, is empty, ends early, or its checksums do not hold; says what was seen.
    """
    damage = find_damage(path)
    if damage is not None:
        raise DataError(f"{name_as_text(path)} {damage}.")


def find_damage(path: Path) -> str | None:
    """What :func:`check_whole` objects to, in words that follow the file's name; ``None`` for a whole file."""
    if (problem := name_problem(path)) is not None:
        return problem
    name = path.name.lower()
    try:
        with path.open("rb") as file:
            magic = file.read(8)
            file.seek(0)
            if not magic:
                return "is empty (0 bytes)"
            if name.endswith((".nii", ".nii.gz")):
                return _nifti_damage(file, magic)
            if magic == _PNG_MAGIC:
                return _png_damage(file)
            if magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return _tiff_damage(file)
        return _gipl_damage(path) if name.endswith(".gipl") else None
    except OSError as error:
        return f"cannot be opened: {error.strerror or error}"


def _nifti_damage(file: BinaryIO, magic: bytes) -> str | None:
    compressed = magic.startswith(GZIP_MAGIC)
    header, length = b"", 0
    try:
        for block in _gzip_blocks(file) if compressed else iter(lambda: file.read(_BLOCK), b""):
            header += block[: max(0, _NIFTI_HEADER_BYTES - len(header))]
            length += len(block)
    except (EOFError, zlib.error) as error:
        return f"is not whole: its gzip data end early or were changed ({error}) after {length} bytes of content"
    for kind in _NIFTI_HEADERS:
        if len(header) < kind.sizeof_hdr:
            continue
        found = kind(header[: kind.sizeof_hdr], check=False)
        if found["magic"].item() == found.single_magic and int(found["sizeof_hdr"]) == found.sizeof_hdr:
            break
    else:
        return "has no NIfTI header, though its name says so"
    try:
        voxels = math.prod(int(size) for size in found.get_data_shape())
        expected = max(int(found.get_data_offset()), found.single_vox_offset) + voxels * found.get_data_dtype().itemsize
    except (HeaderDataError, OverflowError, ValueError) as error:
        return f"has a NIfTI header that does not hold: {error}"
    if length < expected:
        return f"is not whole: it holds {length} of the {expected} bytes that its header announces"
    return None


def stored_voxels(path: Path) -> NDArray[Any]:
    """A whole NIfTI file's voxels (X, Y, Z, ...) as they are stored: ITK replaces NaN and infinity by zero without a word.

    Compression is told by the first bytes, not by the name as in nibabel's own functions.
    """
    with path.open("rb") as file:
        content = b"".join(_gzip_blocks(file)) if is_gzip(path) else file.read()
    second = content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 540, the length of NIfTI-2's header
    image: Any = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)
    return np.asanyarray(image.dataobj)


def _gzip_blocks(file: BinaryIO) -> Iterator[bytes]:
    """What gzip data contain, member by member; bytes that follow the last member are passed over, as zlib does.

    Raises:
        EOFError: the data end within a member.
        zlib.error: they were changed: the checksum or the coding does not hold.
    """
    content, waiting = zlib.decompressobj(wbits=31), b""
    while given := waiting or file.read(_GZIP_BLOCK):
        yield content.decompress(given)
        waiting = content.unused_data
        if content.eof:
            waiting = waiting or file.read(_GZIP_BLOCK)
            if not waiting.startswith(GZIP_MAGIC):
                return
            content = zlib.decompressobj(wbits=31)
    raise EOFError("the end of the data is missing")


def _png_damage(file: BinaryIO) -> str | None:
    try:
        with Image.open(file) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for a broken file
        return f"is not whole: {' '.join(str(error).split())}"
    return None


def _tiff_damage(file: BinaryIO) -> str | None:
    """Walk through the chain of pages."""
    size = os.fstat(file.fileno()).st_size
    order = "<" if file.read(2) == b"II" else ">"
    try:
        (version,) = struct.unpack(f"{order}H", file.read(2))
        offset_format, count_format, tag_bytes = _TIFF_LAYOUTS[version]
        if version == 43:
            file.seek(8)
        seen: set[int] = set()
        while True:
            (page,) = struct.unpack(f"{order}{offset_format}", file.read(struct.calcsize(offset_format)))
            if page == 0 or page in seen:
                return None
            seen.add(page)
            file.seek(page)
            (tags,) = struct.unpack(f"{order}{count_format}", file.read(struct.calcsize(f"={count_format}")))
            file.seek(page + struct.calcsize(f"={count_format}") + tags * tag_bytes)
    except struct.error:
        return f"is not whole: it ends after {size} bytes, before the description of its page {max(1, len(seen))}"


def _gipl_damage(path: Path) -> str | None:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        return f"cannot be read: {error_line(error)}"
    pixel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    expected = _GIPL_HEADER_BYTES + math.prod(reader.GetSize()) * pixel.GetSizeOfPixelComponent()
    found = path.stat().st_size
    if found < expected:
        return f"is not whole: it holds {found} of the {expected} bytes that its header announces"
    return None


def error_line(error: Exception) -> str:
    """What a library says went wrong, on one line, without the places in its source that SimpleITK puts first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Exception thrown in SimpleITK"):
        lines = [lines[-1].removeprefix("sitk::ERROR: ")]
    words = " ".join(lines)
    if isinstance(error, LookupError):  # whose text is only what was not found
        words = f"{type(error).__name__} {words}"
    return words or type(error).__name__
