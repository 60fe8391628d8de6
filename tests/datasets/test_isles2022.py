"""ISLES 2022 as it is written for nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.isles2022 import convert_isles2022
from tests.datasets.generated_downloads import (
    DWI_AFFINE,
    DWI_SHAPE,
    FLAIR_AFFINE,
    FLAIR_SHAPE,
    LAS,
    affine,
    centred,
    edit,
    isles_case,
    isles_download,
    positions,
    tree_hash,
    unpack_into_folder,
)

ONE = ConversionOptions(processes=1)
CENTRE = np.array([3.0, -20.0, 40.0])


def load(nnunet: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(nnunet / "Dataset502_ISLES2022" / f"{name}.nii.gz")
    return np.asanyarray(image.dataobj).astype(np.float64), image.affine


def inside(points: np.ndarray, shape: tuple[int, ...], matrix: np.ndarray) -> np.ndarray:
    """Which points (mm) lie between the outermost voxel centres of a grid."""
    index = (points - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    return ((index >= 0) & (index <= np.asarray(shape) - 1)).all(-1)


@pytest.mark.parametrize("layout", ["zenodo", "challenge"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_both_layouts(source: Path, nnunet: Path, layout: str, ending: str) -> None:
    for number in range(1, 6):
        isles_case(source, f"sub-strokecase{number:04d}", layout=layout, ending=ending)
    before = tree_hash(source)
    summary = convert_isles2022([source], options=ONE)
    assert summary.training == [f"sub-strokecase{number:04d}_ses-0001" for number in range(1, 6)]
    content = json.loads((nnunet / "Dataset502_ISLES2022/dataset.json").read_text())
    assert content["channel_names"] == {"0": "DWI", "1": "ADC", "2": "FLAIR"}
    assert content["labels"] == {"background": 0, "lesion": 1}
    assert content["licence"] == "CC BY 4.0"
    assert "10.1038/s41597-022-01875-5" in content["reference"]
    for number in range(3):
        values, matrix = load(nnunet, f"imagesTr/sub-strokecase0003_ses-0001_{number:04d}")
        assert values.shape == DWI_SHAPE
        assert np.allclose(matrix, DWI_AFFINE, atol=1e-4)
    assert tree_hash(source) == before


def test_dwi_adc_and_mask_stay_byte_for_byte_on_their_own_grid(source: Path, nnunet: Path) -> None:
    isles_download(source)
    convert_isles2022([source], options=ONE)
    dataset, name = nnunet / "Dataset502_ISLES2022", "sub-strokecase0002_ses-0001"
    base = source / "sub-strokecase0002/ses-0001"
    assert (dataset / f"imagesTr/{name}_0000.nii.gz").read_bytes() == (base / f"dwi/{name}_dwi.nii.gz").read_bytes()
    assert (dataset / f"imagesTr/{name}_0001.nii.gz").read_bytes() == (base / f"dwi/{name}_adc.nii.gz").read_bytes()
    mask = source / f"derivatives/sub-strokecase0002/ses-0001/{name}_msk.nii.gz"
    assert (dataset / f"labelsTr/{name}.nii.gz").read_bytes() == mask.read_bytes()


@pytest.mark.parametrize("grid", ["dwi", "flair"])
def test_resampling_keeps_every_millimetre(source: Path, nnunet: Path, grid: str) -> None:
    """Intensity is an affine function of the position, which linear interpolation must reproduce at every new voxel."""
    gradient = np.array([0.7, -1.3, 0.4])

    def phantom(points: np.ndarray) -> np.ndarray:
        return 500 + points @ gradient

    for number in range(5):
        isles_case(source, f"sub-strokecase000{number}", image=phantom)
    convert_isles2022([source], grid=grid, options=ONE)
    name = "imagesTr/sub-strokecase0001_ses-0001"
    if grid == "dwi":
        new, old_shape, old_affine, shape, expected_affine = (
            {"FLAIR": 2},
            FLAIR_SHAPE,
            FLAIR_AFFINE,
            DWI_SHAPE,
            DWI_AFFINE,
        )
    else:
        new, old_shape, old_affine, shape, expected_affine = (
            {"DWI": 0, "ADC": 1},
            DWI_SHAPE,
            DWI_AFFINE,
            FLAIR_SHAPE,
            FLAIR_AFFINE,
        )
    for channel, number in new.items():
        values, matrix = load(nnunet, f"{name}_{number:04d}")
        assert values.shape == shape
        assert np.allclose(matrix, expected_affine, atol=1e-4)
        points = positions(shape, matrix)
        known = inside(points, old_shape, old_affine)
        assert known.mean() > 0.3
        scale = 10 if channel == "FLAIR" else 1  # generated as uint16, tenths
        off_in_mm = np.abs(values / scale - phantom(points))[known] / np.linalg.norm(gradient)
        assert off_in_mm.max() < (0.05 if channel == "FLAIR" else 0.002)  # rounding to tenths is 0.033 mm
        far = ~inside(points, tuple(n + 2 for n in old_shape), old_affine @ _shift(-1))
        assert (values[far] == 0).all()


def _shift(voxels: float) -> np.ndarray:
    result = np.eye(4)
    result[:3, 3] = voxels
    return result


def test_mask_is_moved_by_nearest_neighbour(source: Path, nnunet: Path) -> None:
    isles_download(source)
    convert_isles2022([source], grid="flair", options=ONE)
    values, matrix = load(nnunet, "labelsTr/sub-strokecase0001_ses-0001")
    assert set(np.unique(values)) == {0, 1}
    assert np.allclose(matrix, FLAIR_AFFINE, atol=1e-4)
    points = positions(FLAIR_SHAPE, matrix)
    index = (points - DWI_AFFINE[:3, 3]) @ np.linalg.inv(DWI_AFFINE[:3, :3]).T
    nearest = np.rint(index).astype(int)
    tie = (np.abs(index - np.floor(index) - 0.5) < 1e-3).any(-1)
    within = ((nearest >= 0) & (nearest < DWI_SHAPE)).all(-1)
    centres = nearest @ DWI_AFFINE[:3, :3].T + DWI_AFFINE[:3, 3]
    expected = (np.linalg.norm(centres - CENTRE, axis=-1) < 9) & within
    assert np.array_equal(values[~tie], expected[~tie])
    assert np.linalg.norm(points[values == 1].mean(0) - CENTRE) < 1.0


def test_a_point_source_stays_where_it_is_below_a_voxel(source: Path, nnunet: Path) -> None:
    """The centre of mass of a smooth blob in the resampled FLAIR, against its place in millimetres."""

    def blob(points: np.ndarray) -> np.ndarray:
        return 1000 * np.exp(-((points - CENTRE - [1.3, -0.7, 2.1]) ** 2).sum(-1) / (2 * 5.0**2))

    for number in range(5):
        isles_case(source, f"sub-strokecase000{number}", image=blob)
    convert_isles2022([source], options=ONE)
    values, matrix = load(nnunet, "imagesTr/sub-strokecase0000_ses-0001_0002")
    centre = (positions(DWI_SHAPE, matrix) * values[..., None]).sum((0, 1, 2)) / values.sum()
    assert np.linalg.norm(centre - CENTRE - [1.3, -0.7, 2.1]) < 0.2  # a tenth of a voxel


def test_real_size(source: Path, nnunet: Path) -> None:
    shape, flair = (112, 112, 73), (320, 320, 28)
    for number in range(5):
        size = {"dwi_shape": shape, "flair_shape": flair} if number == 0 else {}
        isles_case(source, f"sub-strokecase000{number}", **size)
    convert_isles2022([source], options=ONE)
    assert load(nnunet, "imagesTr/sub-strokecase0000_ses-0001_0002")[0].shape == shape


def test_two_sessions_are_two_cases_of_one_patient(source: Path) -> None:
    isles_download(source, subjects=6)
    isles_case(source, "sub-strokecase0004", session="ses-0002")
    summary = convert_isles2022([source], options=ONE)
    assert (len(summary.training), summary.patients, summary.patients_with_several) == (7, 6, 1)
    both = {"sub-strokecase0004_ses-0001", "sub-strokecase0004_ses-0002"}
    for fold in summary.splits:
        assert len(both & set(fold["val"])) in (0, 2)


def test_what_lies_beside_the_images_in_the_release(source: Path) -> None:
    """Sidecar files, a FLAIR unpacked into a folder, a mask of floats with a header that is off by 1e-5 mm, an empty mask."""
    isles_download(source / "ISLES-2022")
    for path in list(source.rglob("*_dwi.nii.gz")):
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text("{}")
    (source / "ISLES-2022/participants.tsv").write_text("participant_id")
    unpack_into_folder(next(source.rglob("sub-strokecase0002_*_FLAIR.nii.gz")))
    edit(next(source.rglob("sub-strokecase0003_*_msk.nii.gz")), lambda a: a.astype(np.float64), shift=(1e-5, 0, 0))
    edit(next(source.rglob("sub-strokecase0004_*_msk.nii.gz")), lambda a: a * 0)
    before = tree_hash(source)
    summary = convert_isles2022([source], options=ONE)
    assert len(summary.training) == 5
    assert len(summary.warnings) == 2
    assert summary.warnings[0].startswith("1 case with an empty segmentation: sub-strokecase0004_ses-0001")
    assert summary.warnings[1].startswith("1 file with headers")
    assert tree_hash(source) == before


def test_source_without_masks_becomes_images_ts(source: Path) -> None:
    train = isles_download(source / "train")
    isles_case(source / "test", "sub-strokecase0300", layout="challenge", mask=False)
    summary = convert_isles2022([train, source / "test"], options=ONE)
    assert summary.test == ["sub-strokecase0300_ses-0001"]


def test_a_link_back_to_the_source_is_followed_once(source: Path) -> None:
    (isles_download(source) / "latest").symlink_to(source)
    (source / "zz_again").symlink_to(source / "sub-strokecase0001")
    assert convert_isles2022([source], options=ConversionOptions(processes=1, dry_run=True)).training == [
        f"sub-strokecase000{number}_ses-0001" for number in range(1, 6)
    ]


def test_lesion_outside_the_flair_is_reported_as_empty(source: Path) -> None:
    isles_download(source)
    higher = centred(FLAIR_SHAPE, affine((0.45, 0.45, 5)), CENTRE + np.array([0, 0, 20]))
    below = {"lesion": lambda p: np.linalg.norm(p - CENTRE + np.array([0, 0, 12]), axis=-1) < 4, "flair_affine": higher}
    isles_case(source, "sub-strokecase0200", **below)
    summary = convert_isles2022([source], grid="flair", options=ONE)
    assert any("1 case with an empty segmentation: sub-strokecase0200" in text for text in summary.warnings)


def test_other_grid_redoes_the_cases(source: Path, nnunet: Path) -> None:
    isles_download(source)
    convert_isles2022([source], options=ONE)
    summary = convert_isles2022([source], grid="flair", options=ONE)
    assert summary.kept == 0
    assert load(nnunet, "imagesTr/sub-strokecase0001_ses-0001_0000")[0].shape == FLAIR_SHAPE


@pytest.mark.parametrize("orientation", [np.eye(4), LAS])
def test_strongly_oblique(source: Path, nnunet: Path, orientation: np.ndarray) -> None:
    turned = centred(FLAIR_SHAPE, affine((0.45, 0.45, 5), orientation=orientation, degrees=(35, 40, -25)), CENTRE)
    for number in range(5):
        isles_case(source, f"sub-strokecase000{number}", flair_affine=turned, image=lambda p: 500 + p[..., 2])
    convert_isles2022([source], options=ONE)
    values, matrix = load(nnunet, "imagesTr/sub-strokecase0000_ses-0001_0002")
    points = positions(DWI_SHAPE, matrix)
    known = inside(points, FLAIR_SHAPE, turned)
    assert known.sum() > 500
    assert np.abs(values / 10 - 500 - points[..., 2])[known].max() < 0.06
