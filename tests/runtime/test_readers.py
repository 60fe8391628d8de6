"""Images are read and segmentations written as nnU-Net's readers do it: voxels, spacing, geometry, header."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.readers import READERS, check_whole, read_case, read_geometry, write_segmentation
from tests.volumes.formats import FORMATS, written

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
    with gzip.open(path) as file:
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


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_orientations(reader: str, seed: int | None, tmp_path: Path) -> None:
    matrix = None if seed is None else rotation(seed)
    same_as_stock(reader, [save(tmp_path / "a_0000.nii.gz", np.float32, matrix)], tmp_path)


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("flips", [(1, 1, -1), (-1, -1, 1), (-1, 1, 1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_axes(reader: str, flips: tuple[int, ...], order: tuple[int, ...], tmp_path: Path) -> None:
    matrix = np.eye(3)[list(order)] * flips
    same_as_stock(reader, [save(tmp_path / "a_0000.nii.gz", matrix=matrix)], tmp_path)


TYPES = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize(
    "slope", [(1, 0), (0, 0), (0, 5), (2.5, 0), (1, -1024), (0.1, 3.3), (np.nan, np.nan), (-1.5, 2)]
)
@pytest.mark.parametrize("dtype", TYPES)
def test_types_and_slopes(reader: str, dtype: type, slope: tuple[float, float], tmp_path: Path) -> None:
    path = save(tmp_path / "a_0000.nii.gz", dtype, scl_slope=slope[0], scl_inter=slope[1])
    expected, _ = STOCK[reader]().read_images([str(path)])
    assert np.array_equal(read_case(reader, ".nii.gz", [path]).array, expected)


def test_large_integers_round_as_in_itk(tmp_path: Path) -> None:
    values = (np.arange(210).reshape(SHAPE) * 12_345_679).astype(np.int32)
    image = nibabel.Nifti1Image(values, affine(np.eye(3)))
    image.header.set_slope_inter(1.3, 7)
    path = tmp_path / "a_0000.nii.gz"
    nibabel.save(image, path)
    same_as_stock("SimpleITKIO", [path], tmp_path)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (2, 1), (1, 2), (0, 2), (4, 4)])
@pytest.mark.parametrize("other", ["same", "turned", "sheared", "shifted"])
def test_sform_or_qform(codes: tuple[int, int], other: str, tmp_path: Path) -> None:
    base = affine(rotation(5))
    sform = {"same": base, "turned": affine(rotation(6)), "shifted": base + np.eye(4)[:, 3:] @ np.ones((1, 4)) * 0}[
        other if other != "sheared" else "same"
    ].copy()
    if other == "sheared":
        sform[0, 1] += 0.5
    if other == "shifted":
        sform[:3, 3] += 3
    path = save(tmp_path / "a_0000.nii.gz", matrix=rotation(5), codes=codes, sform=sform)
    try:
        STOCK["SimpleITKIO"]().read_images([str(path)])
    except RuntimeError:
        with pytest.raises(DataError, match="right angles"):
            read_case("SimpleITKIO", ".nii.gz", [path])
        return
    same_as_stock("SimpleITKIO", [path], tmp_path)


@pytest.mark.parametrize("units", [0, 1, 2, 3, 10])
def test_units(units: int, tmp_path: Path) -> None:
    same_as_stock("SimpleITKIO", [save(tmp_path / "a_0000.nii.gz", xyzt_units=units)], tmp_path)


@pytest.mark.parametrize("pixdim", [(1, 0, 1, 2), (1, np.nan, 1, 2), (-1, 1, 1, 2), (1, 1, -2, 2), (0, 1, 1, 2)])
def test_voxel_sizes(pixdim: tuple[float, ...], tmp_path: Path) -> None:
    path = save(tmp_path / "a_0000.nii.gz", pixdim=[*pixdim, 0, 0, 0, 0])
    same_as_stock("SimpleITKIO", [path], tmp_path)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (1, 1, 5), (5, 6, 7, 1)])
def test_few_and_many_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = save(tmp_path / "a_0000.nii.gz", shape=shape)
    same_as_stock("SimpleITKIO", [path], tmp_path)
    for reader in NIFTI_READERS[1:]:
        if len(shape) == 3:
            same_as_stock(reader, [path], tmp_path)
        else:
            with pytest.raises(AssertionError):
                STOCK[reader]().read_images([str(path)])
            with pytest.raises(DataError, match="reads three"):
                read_case(reader, ".nii.gz", [path])


def test_four_dimensions_are_refused_where_nnunet_cannot_write(tmp_path: Path) -> None:
    path = save(tmp_path / "a_0000.nii.gz", shape=(5, 6, 7, 2))
    values, properties = SimpleITKIO().read_images([str(path)])
    with pytest.raises(AssertionError):
        SimpleITKIO().write_seg(values[0], str(tmp_path / "seg.nii.gz"), properties)
    with pytest.raises(DataError, match="split channels or time points"):
        read_case("SimpleITKIO", ".nii.gz", [path])


@pytest.mark.parametrize("reader", NIFTI_READERS)
def test_several_channels(reader: str, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"a_000{number}.nii.gz", np.int16, rotation(1), seed=number) for number in range(3)]
    same_as_stock(reader, paths, tmp_path)
    for number, change in enumerate(({"shape": (5, 6, 8)}, {"spacing": (0.7, 1.1, 2.6)}, {"matrix": rotation(2)})):
        other = save(tmp_path / f"b{number}_0001.nii.gz", **{"matrix": rotation(1), **change})
        for check in (read_case, read_geometry):
            with pytest.raises(DataError, match=r"lies on another grid than a_0000\.nii\.gz"):
                check(reader, ".nii.gz", [paths[0], other])


@pytest.mark.parametrize("reader", NIFTI_READERS)
def test_damaged(reader: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a_0000.nii.gz", np.float64)
    whole = path.read_bytes()
    for content in (whole[:-4], whole[: len(whole) // 2], whole[:-8] + b"12345678", b"no image", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a_0000\.nii\.gz"):
            read_case(reader, ".nii.gz", [path])
    uncompressed = save(tmp_path / "b_0000.nii", np.float64)
    uncompressed.write_bytes(uncompressed.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"b_0000\.nii"):
        read_case(reader, ".nii", [uncompressed])


def test_plain_nifti_with_the_name_of_a_compressed_one(tmp_path: Path) -> None:
    path = tmp_path / "a_0000.nii.gz"
    path.write_bytes(save(tmp_path / "plain.nii").read_bytes())
    check_whole(path)
    same_as_stock("SimpleITKIO", [path], tmp_path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".gipl"])
def test_other_formats_of_itk(ending: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray((np.random.default_rng(0).random(SHAPE) * 99).astype(np.int16))
    image.SetSpacing((0.7, 1.1, 2.5))
    image.SetOrigin((1, -2, 3))
    path = tmp_path / f"a_0000{ending}"
    sitk.WriteImage(image, str(path))
    same_as_stock("SimpleITKIO", [path], tmp_path, ending)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3)])
def test_pictures(ending: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    from skimage import io

    path = tmp_path / f"a_0000{ending}"
    io.imsave(path, (np.random.default_rng(0).random(shape) * 255).astype(np.uint8), check_contrast=False)
    volume = read_case("NaturalImage2DIO", ending, [path])
    stock = NaturalImage2DIO()
    expected, properties = stock.read_images([str(path)])
    assert np.array_equal(volume.array, expected)
    assert volume.properties == properties
    labels = (np.random.default_rng(0).random((1, 9, 8)) * 3).astype(np.uint8)
    write_segmentation("NaturalImage2DIO", ending, labels, tmp_path / f"mine{ending}", volume.properties)
    assert np.array_equal(io.imread(tmp_path / f"mine{ending}"), labels[0])


@pytest.mark.parametrize("spacing", [None, [3, 0.5, 0.5]])
def test_tiff(spacing: list[float] | None, tmp_path: Path) -> None:
    import json

    import tifffile

    path = tmp_path / "a_0000.tif"
    tifffile.imwrite(path, (np.random.default_rng(0).random(SHAPE) * 255).astype(np.uint8))
    if spacing:
        (tmp_path / "a.json").write_text(json.dumps({"spacing": spacing}))
    volume = read_case("Tiff3DIO", ".tif", [path])
    expected, properties = Tiff3DIO().read_images([str(path)])
    assert np.array_equal(volume.array, expected)
    assert list(volume.properties["spacing"]) == list(properties["spacing"])
    labels = (np.random.default_rng(0).random(SHAPE) * 3).astype(np.uint8)
    write_segmentation("Tiff3DIO", ".tif", labels, tmp_path / "mine.tif", volume.properties)
    Tiff3DIO().write_seg(labels, str(tmp_path / "theirs.tif"), properties)
    assert np.array_equal(tifffile.imread(tmp_path / "mine.tif"), tifffile.imread(tmp_path / "theirs.tif"))
    assert json.loads((tmp_path / "mine.json").read_text()) == json.loads((tmp_path / "theirs.json").read_text())


@pytest.mark.parametrize("name", ["gipl", "tiff, page by page", "tiff, big", "png", "png, noise", "nifti", "mha"])
def test_a_file_cut_short_is_refused_or_read_as_the_whole_one(name: str, tmp_path: Path) -> None:
    name = {"mha": "meta image"}.get(name, name)
    path, stock = written(name, tmp_path, "a_0000"), type(FORMATS[name][1]).__name__
    ending, content = FORMATS[name][0], path.read_bytes()
    if stock == "SimpleITKIO" and ending == ".nii":
        stock = "NibabelIO"  # nnU-Net's for this ending
    expected = read_case(stock, ending, [path]).array
    cuts = [content[:end] for end in range(0, len(content), max(1, len(content) // 40))]
    cuts += [content[:-1], content[:100] + content[110:]] if ending == ".png" else [content[:-1]]
    refused = 0
    for cut in cuts:
        path.write_bytes(cut)
        try:
            assert np.array_equal(read_case(stock, ending, [path]).array, expected)
        except DataError:
            refused += 1
    assert refused > len(cuts) / 2


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from nnunet_kd_runtime.errors import MissingRequirement

    for module, reader, ending, extra in (
        ("SimpleITK", "SimpleITKIO", ".mha", "itk"),
        ("imageio.v3", "NaturalImage2DIO", ".png", "images"),
        ("tifffile", "Tiff3DIO", ".tif", "images"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        path = tmp_path / f"a_0000{ending}"
        path.write_bytes(b"")
        with pytest.raises(MissingRequirement, match=rf"pip install 'nnunet-kd-runtime\[{extra}\]'"):
            read_case(reader, ending, [path])


def test_every_reader_is_compared() -> None:
    assert set(READERS) == set(STOCK)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.one_of(st.none(), st.integers(0, 99)),
    spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
    dtype=st.sampled_from(TYPES),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    reader=st.sampled_from(NIFTI_READERS),
)
def test_random_files(
    seed: int | None, spacing: tuple[float, ...], dtype: type, shape: tuple[int, ...], reader: str, tmp_path: Path
) -> None:
    matrix = None if seed is None else rotation(seed)
    path = save(tmp_path / "a_0000.nii.gz", dtype, matrix, shape, spacing)
    same_as_stock(reader, [path], tmp_path)
