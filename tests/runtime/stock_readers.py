"""nnU-Net's readers beside the runtime's, and files for both."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.readers import read_case, write_segmentation

STOCK = {
    "SimpleITKIO": SimpleITKIO,
    "NibabelIO": NibabelIO,
    "NibabelIOWithReorient": NibabelIOWithReorient,
    "NaturalImage2DIO": NaturalImage2DIO,
    "Tiff3DIO": Tiff3DIO,
}
NIFTI_READERS = ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"]
SHAPE = (5, 6, 7)


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q


def affine(matrix: np.ndarray, spacing: tuple[float, ...] = (0.7, 1.1, 2.5)) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = matrix * spacing
    made[:3, 3] = (-11.5, 23.25, 7.125)
    return made


def save(
    path: Path,
    dtype: Any = np.int16,
    matrix: np.ndarray | None = None,
    shape: tuple[int, ...] = SHAPE,
    spacing: tuple[float, ...] = (0.7, 1.1, 2.5),
    codes: tuple[int, int] = (1, 1),
    sform: np.ndarray | None = None,
    seed: int = 0,
    **fields: Any,
) -> Path:
    """A NIfTI file written by hand: fields of the header are taken as they are."""
    turned = affine(np.eye(3) if matrix is None else matrix, spacing)
    values = np.random.default_rng(seed).random(shape) * 100
    image = nibabel.Nifti1Image(values.astype(dtype), turned, dtype=dtype)
    image.set_qform(turned, codes[0])
    image.set_sform(turned if sform is None else sform, codes[1])
    header = image.header
    header.set_data_dtype(dtype)
    for name, value in fields.items():
        header[name] = value
    stored = values.astype(dtype).tobytes(order="F")
    content = header.binaryblock[:348]
    block = bytearray(content)
    for name, value in {"vox_offset": 352, **{k: v for k, v in fields.items() if k.startswith("scl")}}.items():
        offset = header.template_dtype.fields[name][1]
        block[offset : offset + 4] = np.float32(value).tobytes()
    data = bytes(block) + bytes(4) + stored
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def same_as_stock(reader: str, paths: list[Path], tmp_path: Path, ending: str = ".nii.gz") -> None:
    stock = STOCK[reader]()
    expected, properties = stock.read_images([str(path) for path in paths])
    volume = read_case(reader, ending, paths)
    assert volume.array.dtype == expected.dtype
    assert np.array_equal(volume.array, expected)
    assert volume.array.flags["C_CONTIGUOUS"] == expected.flags["C_CONTIGUOUS"]
    assert [float(v) for v in volume.properties["spacing"]] == [float(v) for v in properties["spacing"]]
    if "sitk_stuff" in properties:
        for name, values in properties["sitk_stuff"].items():
            np.testing.assert_allclose(volume.properties["sitk_stuff"][name], values, rtol=0, atol=2e-6, err_msg=name)
    for name, values in properties.get("nibabel_stuff", {}).items():
        assert np.array_equal(volume.properties["nibabel_stuff"][name], values)
    labels = (np.random.default_rng(3).random(expected.shape[1:]) * 3).astype(np.uint8)
    for largest in (2, 300):
        labels = labels.astype(np.uint16)
        labels.flat[0] = largest
        mine, theirs = tmp_path / f"mine{ending}", tmp_path / f"theirs{ending}"
        write_segmentation(reader, ending, labels, mine, volume.properties)
        stock.write_seg(labels, str(theirs), properties)
        assert_same_file(mine, theirs)


def _header(path: Path) -> nibabel.Nifti1Header:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return nibabel.Nifti1Header.from_fileobj(file, check=False)


def assert_same_file(mine: Path, theirs: Path) -> None:
    if ".nii" not in mine.name:
        a, b = (sitk.ReadImage(str(path)) for path in (mine, theirs))
        assert np.array_equal(sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b))
        assert a.GetPixelIDTypeAsString() == b.GetPixelIDTypeAsString()
        assert (a.GetSpacing(), a.GetOrigin(), a.GetDirection()) == (b.GetSpacing(), b.GetOrigin(), b.GetDirection())
        return
    first, second = (nibabel.load(path) for path in (mine, theirs))
    assert np.array_equal(np.asanyarray(first.dataobj), np.asanyarray(second.dataobj))
    raw = [_header(path) for path in (mine, theirs)]
    # at half turns a quaternion and its negative say the same
    np.testing.assert_allclose(raw[0].get_qform(), raw[1].get_qform(), rtol=0, atol=2e-6)
    rounded = ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z", "pixdim")
    for name in raw[0].keys():  # noqa: SIM118  a header iterates over nothing else
        if name.startswith("quatern"):
            continue
        if name in rounded:
            np.testing.assert_allclose(raw[0][name], raw[1][name], rtol=0, atol=2e-6, err_msg=name)
        else:
            assert np.array_equal(raw[0][name], raw[1][name]), (name, raw[0][name], raw[1][name])


TYPES = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]
