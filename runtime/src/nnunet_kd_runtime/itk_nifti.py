"""NIfTI files as ITK reads and writes them (nnU-Net's SimpleITKIO), with NumPy and nibabel's header.

Followed step by step: ITK 5.4, ``Modules/IO/NIFTI/src/itkNiftiImageIO.cxx`` (slope, units, which of sform and qform holds,
axes to LPS) and ``nifti1_io.c`` (voxel sizes of zero, quaternions).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.volume import Geometry, Volume, smallest_type

EPSILON = float(np.finfo(np.float64).eps)
TO_LPS = np.array([-1.0, -1.0, 1.0])
"""NIfTI's axes point to right, anterior, superior; ITK's to left, posterior, superior."""
UNITS = {1: 1e3, 3: 1e-3}
"""NIfTI's codes of metre and micrometre: in millimetres."""
HEADER_BYTES = 348
NIFTI2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
"""How a header of the second version begins: with its size."""
ORTHONORMAL = 1e-4
"""ITK's tolerance for directions."""


def read(path: Path) -> Volume:
    """Read one file.

    Raises:
        DataError: damaged, or an image that nnU-Net's SimpleITKIO does not take through to a segmentation.
    """
    with _reading(path) as file:
        header, geometry = _header(file, path)
        raw = _voxels(file, header, geometry.shape, path)
    array = _rescaled(raw, header).T
    itk = {"spacing": geometry.spacing, "origin": geometry.origin, "direction": geometry.direction}
    spacing = list(geometry.spacing[::-1])
    if array.ndim == 2:
        spacing = [max(spacing) * 999, *spacing]
        array = array[None]
    return Volume(array[None], {"sitk_stuff": itk, "spacing": spacing}, geometry)


def geometry(path: Path) -> Geometry:
    """From the header alone; see :func:`read`."""
    with _reading(path) as file:
        return _header(file, path)[1]


def write(segmentation: NDArray[Any], path: Path, properties: dict[str, Any]) -> None:
    """Write labels ``(z, y, x)`` in the geometry of the image that ``properties`` are of."""
    itk = properties["sitk_stuff"]
    dimensions = len(itk["spacing"])
    labels = smallest_type(segmentation[0] if dimensions == 2 else segmentation)
    header = Nifti1Header()
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(labels.shape[::-1])
    header["xyzt_units"] = 2 | 8  # ITK: millimetres and seconds, whatever the image
    header["scl_slope"], header["scl_inter"], header["regular"] = 1, 0, b"r"
    header["vox_offset"] = 352
    _set_geometry(header, itk, dimensions)
    content = header.binaryblock + bytes(4) + labels.tobytes()
    with gzip.GzipFile(path, "wb", compresslevel=6, mtime=0) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(content)


def open_nifti(path: Path) -> BinaryIO:
    """The file's content from its first byte: ``.gz`` files that are none are read as they are, which ITK does, too."""
    with path.open("rb") as file:
        zipped = path.suffix == ".gz" and file.read(2) == b"\x1f\x8b"
    # by its name: a GzipFile around an open file leaves that one open
    return gzip.GzipFile(path) if zipped else path.open("rb")  # type: ignore[return-value]


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_nifti(path) as file:
            yield file
    except (OSError, EOFError, ValueError, zlib.error, HeaderDataError, WrapStructError) as error:
        raise DataError(f"{path} cannot be read as NIfTI: {error}.") from error


def _header(file: BinaryIO, path: Path) -> tuple[Nifti1Header, Geometry]:
    header = Nifti1Header(file.read(HEADER_BYTES), check=False)  # without the extensions, which may be damaged
    if header.binaryblock[:4] in NIFTI2:
        raise DataError(
            f"{path} is NIfTI-2, which nnU-Net's SimpleITKIO does not read either. Save it as NIfTI-1, for example with "
            f"nibabel: nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load(IMAGE)), NEW)."
        )
    return header, _geometry(header, _shape(header, path), path)


def _shape(header: Nifti1Header, path: Path) -> tuple[int, ...]:
    dimensions = int(header["dim"][0])
    if bytes(header["magic"].item()).rstrip(b"\0") not in (b"n+1", b"ni1") or not 1 <= dimensions <= 7:
        raise DataError(f"{path} is not a NIfTI-1 image.")
    sizes = [int(size) for size in header["dim"][1 : dimensions + 1]]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if min(sizes) < 1 or len(sizes) not in (2, 3):
        raise DataError(
            f"{path} has the shape {tuple(sizes)}. nnU-Net's SimpleITKIO writes segmentations of 2D and 3D images only; split "
            f"channels or time points into files of their own."
        )
    return tuple(sizes)


def _voxels(file: BinaryIO, header: Nifti1Header, shape: tuple[int, ...], path: Path) -> NDArray[Any]:
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        raise DataError(f"{path} holds voxels of type {error}, a number that NIfTI-1 does not define.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"{path} holds voxels of type {dtype}, not one number each.")
    count = int(np.prod(shape)) * dtype.itemsize
    file.seek(_first_voxel(header, path))
    content = file.read(count)
    if len(content) != count:
        raise DataError(f"{path} is not whole: it ends after {len(content)} of {count} bytes of voxels.")
    return np.frombuffer(content, dtype).reshape(shape, order="F")


def _first_voxel(header: Nifti1Header, path: Path) -> int:
    """Offset in bytes; ``nifti1_io.c`` makes a 32-bit integer of the number, the smallest of all where it is none.

    In a file of its own, voxels begin after the header, whatever the number says. A header that names a file of voxels beside
    it (``ni1``) is taken at its word.
    """
    offset = float(header["vox_offset"])
    known = abs(offset) < 2**31  # not so for NaN
    if header["magic"].item().startswith(b"n+1"):
        return max(HEADER_BYTES, int(offset)) if known else HEADER_BYTES
    if not known or offset < 0:
        raise DataError(f"{path} does not say where its voxels begin (vox_offset {offset:g}).")
    return int(offset)


def _rescaled(raw: NDArray[Any], header: Nifti1Header) -> NDArray[np.float32]:
    """Slope and intercept in float64, results and integers before them in float32."""
    slope, intercept = (_finite(header[name]) for name in ("scl_slope", "scl_inter"))
    if abs(slope) < EPSILON:
        slope = 1.0
    if abs(slope - 1) > EPSILON or abs(intercept) > EPSILON:
        exact = raw if raw.dtype.kind == "f" else raw.astype(np.float32)
        return (exact.astype(np.float64) * slope + intercept).astype(np.float32)
    return raw.astype(np.float32)


def _geometry(header: Nifti1Header, shape: tuple[int, ...], path: Path) -> Geometry:
    dimensions = len(shape)
    sizes = [_finite(size) or 1.0 for size in header["pixdim"][1:4]]
    scale = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    spacing = np.array(sizes[:dimensions]) * scale
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if qform <= 0 and sform <= 0:
        origin, direction = np.zeros(3), np.eye(3)
    else:
        matrix = _matrix(header, sizes, path)
        origin = TO_LPS * matrix[:, 3] * scale
        lengths = np.linalg.norm(matrix[:, :3], axis=0)
        direction = TO_LPS[:, None] * matrix[:, :3] / np.where(lengths > 0, lengths, 1)
    direction = (
        direction[:dimensions, :dimensions] * np.sign(spacing) + 0.0
    )  # ITK turns axes of negative spacing around; -0 becomes 0
    if abs(np.linalg.det(direction)) < EPSILON:
        raise DataError(f"{path} has directions in its header that span no {dimensions} dimensions.")
    return Geometry(
        shape,
        tuple(float(value) for value in np.abs(spacing)),
        tuple(float(value) for value in origin[:dimensions]),
        tuple(float(value) for value in direction.ravel()),
    )


def _matrix(header: Nifti1Header, sizes: list[float], path: Path) -> NDArray[np.float64]:
    """ITK's choice between sform and qform, ``(3, 4)`` from voxels to right, anterior, superior."""
    sform = np.stack([header["srow_x"], header["srow_y"], header["srow_z"]]).astype(np.float64)
    qform_known, sform_code = int(header["qform_code"]) > 0, int(header["sform_code"])
    qform = _quaternion_matrix(header, sizes) if qform_known else None
    usable = sform_code > 0 and _orthonormal(sform[:, :3])
    if usable and (qform is None or sform_code == 1 or np.allclose(sform, qform, rtol=0, atol=ORTHONORMAL)):
        return sform
    if qform is None:
        raise DataError(
            f"{path} has axes that are not at right angles (a sheared sform), which nnU-Net's SimpleITKIO does not read either. "
            f"Resample it to a regular grid."
        )
    return qform


def _orthonormal(matrix: NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.all(np.isfinite(matrix)) or lengths.min() == 0:
        return False
    unit = matrix / lengths
    return bool(np.abs(unit @ unit.T - np.eye(3)).max() <= ORTHONORMAL)


def _quaternion_matrix(header: Nifti1Header, sizes: list[float]) -> NDArray[np.float64]:
    """``nifti_quatern_to_mat44``."""
    b, c, d = (_finite(header[f"quatern_{name}"]) for name in "bcd")
    a = 1 - (b * b + c * c + d * d)
    if a < 1e-7:  # a rotation by 180 degrees
        norm = 1 / np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b * norm, c * norm, d * norm
    else:
        a = np.sqrt(a)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    handed = -1.0 if _finite(header["pixdim"][0]) < 0 else 1.0
    lengths = [size if size > 0 else 1.0 for size in sizes]
    offset = [_finite(header[f"qoffset_{name}"]) for name in "xyz"]
    return np.column_stack([rotation * [lengths[0], lengths[1], lengths[2] * handed], offset])


def _set_geometry(header: Nifti1Header, itk: dict[str, Any], dimensions: int) -> None:
    """sform and qform alike, both of code 1 (scanner)."""
    direction, offset, spacing = np.eye(3), np.zeros(3), np.ones(3)
    direction[:dimensions, :dimensions] = np.reshape(itk["direction"], (dimensions, dimensions))
    offset[:dimensions] = itk["origin"]
    spacing[:dimensions] = itk["spacing"]
    left, _, right = np.linalg.svd(TO_LPS[:, None] * direction)
    matrix = np.eye(4)
    matrix[:3, :3] = (left @ right) * spacing
    matrix[:3, 3] = TO_LPS * offset
    header.set_qform(matrix, code=1)
    header.set_sform(matrix, code=1)
    header["pixdim"][1:] = [*spacing, 0, 0, 0, 0]


def _finite(value: Any) -> float:
    """nifti1_io takes numbers that are none as zero."""
    number = float(value)
    return number if np.isfinite(number) else 0.0
