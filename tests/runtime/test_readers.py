"""Images are read and segmentations written as nnU-Net's readers do it: voxels, spacing, geometry, header."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.readers import READERS, check_whole, read_case, read_geometry
from tests.runtime.stock_readers import NIFTI_READERS, SHAPE, STOCK, TYPES, affine, rotation, same_as_stock, save

VOX_OFFSET, EXTENSIONS = 108, 348
"""Places in a NIfTI-1 file."""


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_orientations(reader: str, seed: int | None, tmp_path: Path) -> None:
    matrix = None if seed is None else rotation(seed)
    same_as_stock(reader, [save(tmp_path / "a_0000.nii.gz", np.float32, matrix)], tmp_path)


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_files_are_closed(reader: str, ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a_0000{ending}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        read_case(reader, ending, [path])
        read_geometry(reader, ending, [path])
    assert not [str(one.message) for one in caught if one.category is ResourceWarning]


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("flips", [(1, 1, -1), (-1, -1, 1), (-1, 1, 1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_axes(reader: str, flips: tuple[int, ...], order: tuple[int, ...], tmp_path: Path) -> None:
    matrix = np.eye(3)[list(order)] * flips
    same_as_stock(reader, [save(tmp_path / "a_0000.nii.gz", matrix=matrix)], tmp_path)


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


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("order", ["LPS", "SRA", "PIL"])
def test_channels_that_are_stored_along_other_axes(order: str, seed: int | None, tmp_path: Path) -> None:
    reader = "NibabelIOWithReorient"
    paths = [save(tmp_path / f"a_000{number}.nii.gz", np.int16, matrix=None if seed is None else rotation(seed))
             for number in range(2)]  # fmt: skip
    image = nibabel.load(paths[1])
    turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(order)))
    turned.get_fdata()
    nibabel.save(turned, paths[1])
    same_as_stock(reader, paths, tmp_path)
    for path in paths:
        found, read = read_geometry(reader, ".nii.gz", [path]), read_case(reader, ".nii.gz", [path]).geometry
        assert found is not None
        for name in ("shape", "spacing", "origin", "direction"):
            assert getattr(found, name) == pytest.approx(getattr(read, name), abs=1e-5), name
    assert read_geometry(reader, ".nii.gz", paths) is not None


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


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("offset", [0, -5, 100, 347, 348, 349, 352, 360.7, np.nan, np.inf])
def test_where_voxels_begin(ending: str, offset: float, tmp_path: Path) -> None:
    path = tmp_path / f"a_0000{ending}"
    content = bytearray(save(tmp_path / "whole.nii").read_bytes()) + bytes(range(40))
    content[VOX_OFFSET : VOX_OFFSET + 4] = np.float32(offset).tobytes()
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    same_as_stock("SimpleITKIO", [path], tmp_path, ending)
    content[EXTENSIONS] = 1  # and none follow
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    expected, _ = SimpleITKIO().read_images([str(path)])
    assert np.array_equal(read_case("SimpleITKIO", ending, [path]).array, expected)


def test_voxels_beyond_the_end(tmp_path: Path) -> None:
    path = save(tmp_path / "a_0000.nii")
    content = bytearray(path.read_bytes())
    content[VOX_OFFSET : VOX_OFFSET + 4] = np.float32(1e9).tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not whole"):
        read_case("SimpleITKIO", ".nii", [path])


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize(
    ("place", "value"),
    [(70, np.int16(32767)), (70, np.int16(0)), (42, np.int16(-3)), (40, np.int16(9)), (VOX_OFFSET, np.float32(np.inf)),
     (280, np.float32(np.nan)), (344, np.int32(0)), (0, np.int32(7))],
)  # fmt: skip
def test_damaged_headers(reader: str, place: int, value: np.generic, tmp_path: Path) -> None:
    """Refused, or read as nnU-Net reads it: never another error."""
    content = bytearray(save(tmp_path / "whole.nii").read_bytes())
    content[place : place + value.nbytes] = value.tobytes()
    for path, damaged in ((tmp_path / "a.nii", content), (tmp_path / "a.nii.gz", gzip.compress(content))):
        path.write_bytes(damaged)
        ending = path.name[1:]
        try:
            read_geometry(reader, ending, [path])
            found = read_case(reader, ending, [path]).array
        except DataError as error:
            assert path.name in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            continue
        assert np.array_equal(found, STOCK[reader]().read_images([str(path)])[0])


def test_a_damaged_stream_is_told_by_the_header_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a_0000.nii.gz")
    content = bytearray(path.read_bytes())
    content[10:60] = bytes(range(200, 250))
    path.write_bytes(content)
    for reader in NIFTI_READERS:
        with pytest.raises(DataError, match=r"a_0000\.nii\.gz cannot be read"):
            read_geometry(reader, ".nii.gz", [path])


def test_nifti_of_the_second_version(tmp_path: Path) -> None:
    path = tmp_path / "a_0000.nii.gz"
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti2Image(values, affine(np.eye(3))), path)
    with pytest.raises(RuntimeError):
        SimpleITKIO().read_images([str(path)])
    for check in (read_case, read_geometry):
        with pytest.raises(DataError, match="is NIfTI-2, which nnU-Net's SimpleITKIO does not read"):
            check("SimpleITKIO", ".nii.gz", [path])
    for reader in NIFTI_READERS[1:]:
        same_as_stock(reader, [path], tmp_path)


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
