"""A file whose end is missing, or bytes in the middle, is refused or read as the whole file is: in every format."""

from __future__ import annotations

import gzip
import os
import shutil
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from nnunet_kd.errors import DataError
from nnunet_kd.volumes.reading import Read, read_segmentation
from nnunet_kd.volumes.wholeness import check_whole, find_damage, stored_voxels
from tests.volumes.formats import CUT_INSIDE, FORMATS, LABELS, SILENT, silent_damage, written

STATED = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@cache
def whole_file(name: str, folder: Path) -> tuple[Path, bytes, Read]:
    """A format's file, its content, and what it reads as."""
    path = written(name, folder / name)
    (path.parent / "damaged").mkdir()
    if (aside := path.with_name("case.json")).is_file():
        shutil.copy(aside, path.parent / "damaged")
    return path, path.read_bytes(), read_segmentation(path, FORMATS[name][1])


def assert_refused_or_the_same(name: str, folder: Path, content: bytes) -> None:
    """What a damaged copy with ``content`` reads as."""
    path, _, (whole, properties) = whole_file(name, folder)
    copy = path.parent / "damaged" / path.name
    copy.write_bytes(content)
    try:
        array, own = read_segmentation(copy, FORMATS[name][1])
    except DataError as error:
        assert str(copy) in str(error)  # noqa: PT017
        return
    assert array.shape == whole.shape
    assert np.array_equal(array, whole)
    assert str(own) == str(properties)


@pytest.mark.parametrize("name", FORMATS)
def test_whole_files_are_whole(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    assert find_damage(path) is None
    array, _ = read_segmentation(path, FORMATS[name][1])
    if "noise" not in name and "reoriented" not in name:
        assert np.array_equal(array[0], LABELS if array.shape[1] > 1 else LABELS[:1])


@pytest.mark.parametrize("name", FORMATS)
@STATED
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
@example(share=0.9999)
@example(share=0.76)
def test_the_end_is_missing(name: str, folder: Path, share: float) -> None:
    content = whole_file(name, folder)[1]
    assert_refused_or_the_same(name, folder, content[: int(share * len(content))])


@pytest.mark.parametrize("name", CUT_INSIDE)
@STATED
@given(start=st.floats(0, 1), count=st.integers(1, 40))
def test_bytes_inside_are_missing(name: str, folder: Path, start: float, count: int) -> None:
    content = whole_file(name, folder)[1]
    place = int(start * len(content))
    assume(place + count < len(content))
    assert_refused_or_the_same(name, folder, content[:place] + content[place + count :])


@pytest.mark.parametrize("name", SILENT)
def test_damage_that_the_library_does_not_see_is_seen(name: str, folder: Path) -> None:
    path = written(name, folder / "silent" / name)
    for content in silent_damage(name):
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            read_segmentation(path, FORMATS[name][1])


def test_what_was_seen_is_said(tmp_path: Path) -> None:
    path = written("nifti, compressed", tmp_path)
    content = path.read_bytes()

    def seen(changed: bytes) -> str:
        path.write_bytes(changed)
        return find_damage(path) or "whole"

    assert seen(b"") == "is empty (0 bytes)"
    assert seen(content[:-4]).startswith("is not whole: its gzip data end early or were changed")
    assert (
        seen(gzip.decompress(content)[:-7]) == "is not whole: it holds 555 of the 562 bytes that its header announces"
    )
    assert seen(gzip.compress(gzip.decompress(content)[:-7])).startswith("is not whole: it holds 555 of the 562 bytes")
    assert seen(b"<html>not found</html>") == "has no NIfTI header, though its name says so"
    assert seen(content + b"more") == "whole"  # as zlib, and so ITK, takes it
    assert (
        seen(gzip.compress(gzip.decompress(content)[:100]) + gzip.compress(gzip.decompress(content)[100:])) == "whole"
    )
    path.unlink()
    with pytest.raises(DataError, match=r"case\.nii\.gz cannot be opened: No such file"):
        check_whole(path)


def test_large_constant_volumes_are_packed_a_thousandfold(tmp_path: Path) -> None:
    image = sitk.Image(300, 300, 300, sitk.sitkUInt8)
    sitk.WriteImage(image, str(tmp_path / "zeros.nii.gz"), True)
    assert find_damage(tmp_path / "zeros.nii.gz") is None
    content = (tmp_path / "zeros.nii.gz").read_bytes()
    (tmp_path / "zeros.nii.gz").write_bytes(content[: len(content) // 2])
    assert find_damage(tmp_path / "zeros.nii.gz") is not None


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(tmp_path: Path) -> None:
    path = written("nifti", tmp_path)
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be opened: Permission denied"):
        check_whole(path)


@pytest.mark.parametrize("name", ["nifti, compressed", "nifti, named compressed", "nifti 2"])
def test_stored_voxels_keep_what_itk_replaces(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    assert np.array_equal(stored_voxels(path), LABELS.transpose(2, 1, 0))
    values = np.array([[[1, np.nan, np.inf]]], np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "nan.nii.gz")
    np.testing.assert_array_equal(stored_voxels(tmp_path / "nan.nii.gz"), values)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "nan.nii.gz"))).ravel().tolist() == [1, 0, 0]
