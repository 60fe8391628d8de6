"""One reader for a dataset, the one that its plan or ``dataset.json`` names, and the files that it takes."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from scipy.spatial.transform import Rotation

from nnunet_kd.errors import DataError
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.placing import move_all
from nnunet_kd.volumes.reading import dataset_reader, header, read_segmentation, whole_numbers
from tests.volumes.formats import FORMATS, LABELS, written

SHEARED = np.array([[1, 0.05, 0, -10], [0, 1, 0, 3], [0, 0, 1.2, 4], [0, 0, 0, 1]])


def sheared(path: Path) -> Path:
    """With a sform whose axes are not at right angles, which ITK refuses."""
    image = nibabel.Nifti1Image(LABELS.transpose(2, 1, 0), SHEARED)
    image.header.set_qform(None, 0)
    image.header.set_sform(SHEARED, 1)
    nibabel.save(image, path)
    return path


def test_the_plan_decides_then_dataset_json_then_the_ending(tmp_path: Path) -> None:
    named = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"}
    assert isinstance(dataset_reader(named, {"image_reader_writer": "NibabelIOWithReorient"}), NibabelIOWithReorient)
    assert isinstance(dataset_reader(named), NibabelIO)
    assert isinstance(dataset_reader({"file_ending": ".nii.gz"}), SimpleITKIO)
    assert isinstance(dataset_reader({"file_ending": ".nii"}), NibabelIO)
    # nnU-Net's planner takes the first reader that opens the first image
    assert isinstance(dataset_reader({"file_ending": ".nii.gz"}, None, [sheared(tmp_path / "s.nii.gz")]), NibabelIO)
    assert isinstance(dataset_reader({"file_ending": ".tif"}, None, [written("tiff", tmp_path)]), Tiff3DIO)
    with pytest.raises(DataError, match="nnU-Net has no reader MyReader"):
        dataset_reader(named, {"image_reader_writer": "MyReader"})
    with pytest.raises(DataError, match=r"no reader for files that end in \.xyz"):
        dataset_reader({"file_ending": ".xyz"})


def test_examples_that_are_not_whole_do_not_choose_the_reader(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut = sheared(tmp_path / "cut.nii.gz")
    cut.write_bytes(cut.read_bytes()[:-30])
    examples = [cut, sheared(tmp_path / "whole.nii.gz")]
    assert isinstance(dataset_reader({"file_ending": ".nii.gz"}, None, examples), NibabelIO)
    assert isinstance(dataset_reader({"file_ending": ".nii.gz"}, None, [cut]), SimpleITKIO)
    assert capfd.readouterr() == ("", "")  # nnU-Net prints a traceback of every reader that fails


def test_itk_would_read_the_voxels_of_the_file_beside(tmp_path: Path) -> None:
    path = written("nifti, compressed", tmp_path)
    other = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(other.shape, np.uint8), other.affine), tmp_path / "case.nii")
    assert not SimpleITKIO().read_seg(str(path))[0].any()  # what stock nnU-Net measures, trains on and predicts
    with pytest.raises(DataError, match=r"case\.nii\.gz and case\.nii lie side by side"):
        read_segmentation(path, SimpleITKIO())
    assert np.array_equal(read_segmentation(path, NibabelIO())[0][0], LABELS)


@pytest.mark.parametrize("name", FORMATS)
def test_headers_say_what_reading_says(name: str, tmp_path: Path) -> None:
    path, reader = written(name, tmp_path), FORMATS[name][1]
    array, properties = read_segmentation(path, reader)
    found = header(path, reader)
    if isinstance(reader, Tiff3DIO):
        assert found is None
        return
    assert found is not None
    assert found.channels == 1
    assert found.dimensions == (2 if isinstance(reader, NaturalImage2DIO) else 3)
    if found.grid is not None:
        assert found.grid.differences(Grid.of_properties(array.shape[1:], properties)) == []
        assert found.grid.size == LABELS.shape[::-1] or "reoriented" in name


@pytest.mark.parametrize("reader", [NibabelIOWithReorient(), SimpleITKIOWithReorient()])
def test_headers_for_readers_that_turn_axes(reader: BaseReaderWriter, tmp_path: Path) -> None:
    """Size, spacing and place as the reader gives them, of images with any axes, oblique ones too."""
    random, path = np.random.default_rng(2), tmp_path / "turned.nii.gz"
    for order in itertools.permutations(range(3)):
        turned = Rotation.from_rotvec(random.uniform(-0.3, 0.3, 3)).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = turned @ (np.eye(3)[:, order] * random.choice([-1, 1], 3)) * random.uniform(0.5, 3, 3)
        affine[:3, 3] = random.uniform(-50, 50, 3)
        image = nibabel.Nifti1Image(LABELS, affine)
        image.header.set_qform(affine, 1)
        image.header.set_sform(affine, 1)
        nibabel.save(image, path)
        array, properties = read_segmentation(path, reader)
        found = header(path, reader)
        assert found is not None
        assert found.grid is not None
        assert found.grid.differences(Grid.of_properties(array.shape[1:], properties)) == []


def test_grids_of_sheared_images(tmp_path: Path) -> None:
    path = sheared(tmp_path / "s.nii.gz")
    found = header(path, NibabelIO())
    assert found is not None
    assert found.grid is not None
    matrix, offset = found.grid.index_to_mm()
    lps = np.diag([-1, -1, 1, 1]) @ SHEARED
    np.testing.assert_allclose(matrix, lps[:3, :3])
    np.testing.assert_allclose(offset, lps[:3, 3])
    with pytest.raises(DataError, match=r"s\.nii\.gz cannot be read"):
        header(path, SimpleITKIO())


def test_labels_are_rounded_where_a_program_computed_in_single_precision() -> None:
    stored = LABELS.astype(np.float32) * np.float32(0.99999994)
    rounded, distance = whole_numbers(stored)
    assert np.array_equal(rounded, LABELS)
    assert 0 < distance < 1e-6
    for other in (LABELS * 0.5, np.where(LABELS == 2, np.nan, LABELS)):
        assert whole_numbers(other)[0] is other


def test_all_files_of_a_format_are_moved_the_segmentation_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    for folder in (source, target):
        folder.mkdir()
    Tiff3DIO().write_seg(LABELS, str(source / "case.tif"), {"spacing": [3.0, 2.0, 1.0]})
    (target / "case.tif").write_bytes(b"old")
    moved = []
    replace = Path.replace

    def noted(self: Path, other: Path) -> Path:
        moved.append(self.name)
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", noted)
    move_all(source, target, last="case.tif")
    assert moved == ["case.json", "case.tif"]
    array, properties = Tiff3DIO().read_seg(str(target / "case.tif"))
    assert np.array_equal(array[0], LABELS)
    assert properties["spacing"] == [3.0, 2.0, 1.0]
