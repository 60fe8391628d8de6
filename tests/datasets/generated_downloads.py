"""Generated downloads with the real datasets' geometry, written by nibabel so that SimpleITK does not check itself."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np

from nnunet_kd.datasets.case import ConversionOptions

# RAS affines, as nibabel has them; 1 mm BraTS volumes lie in SRI24 space
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
LAS = np.diag([-1.0, 1.0, 1.0, 1.0])
BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def affine(
    spacing: Sequence[float],
    *,
    orientation: np.ndarray = LPS,
    degrees: Sequence[float] = (0, 0, 0),
    origin: Sequence[float] = (0, 0, 0),
) -> np.ndarray:
    """RAS affine of a grid that is turned about x, y and z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = [i for i in range(3) if i != axis]
        about = np.eye(3)
        about[first, first] = about[second, second] = np.cos(angle)
        about[first, second], about[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ about
    result = np.eye(4)
    result[:3, :3] = turn @ orientation[:3, :3] * np.asarray(spacing)
    result[:3, 3] = origin
    return result


def centred(shape: Sequence[int], matrix: np.ndarray, centre: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """The same affine with the middle of the volume at ``centre`` (mm)."""
    result = matrix.copy()
    result[:3, 3] = np.asarray(centre) - matrix[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return result


def positions(shape: Sequence[int], matrix: np.ndarray) -> np.ndarray:
    """RAS position (mm) of every voxel's centre: ``(*shape, 3)``."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def write(path: Path, array: np.ndarray, matrix: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, matrix), path)
    return path


BRATS_SHAPE = (24, 24, 16)


def brats_case(
    source: Path,
    name: str,
    *,
    seg: bool = True,
    shape: Sequence[int] = BRATS_SHAPE,
    matrix: np.ndarray = BRATS_AFFINE,
    ending: str = ".nii.gz",
    dtype: type = np.int16,
    labels: Sequence[int] = (0, 1, 2, 3, 4),
) -> Path:
    """One time point; the labels are blocks in the middle, the channels smooth and different."""
    folder = source / name
    ramp = np.add.outer(np.add.outer(np.arange(shape[0]), np.arange(shape[1])), np.arange(shape[2]))
    for number, channel in enumerate(("t1n", "t1c", "t2w", "t2f")):
        write(folder / f"{name}-{channel}{ending}", (ramp * (number + 1) + len(name)).astype(dtype), matrix)
    if seg:
        array = np.zeros(shape, dtype=dtype)
        for number, label in enumerate(labels):
            array[4:12, 4:12, 2 + number : 3 + number] = label
        write(folder / f"{name}-seg{ending}", array, matrix)
    return folder


DWI_SHAPE = (28, 28, 18)
FLAIR_SHAPE = (124, 124, 8)
DWI_AFFINE = centred(DWI_SHAPE, affine((2, 2, 2), orientation=LAS, degrees=(7, -4, 11)), (3, -20, 40))
FLAIR_AFFINE = centred(FLAIR_SHAPE, affine((0.45, 0.45, 5), degrees=(9, -2, 14)), (2.3, -19.1, 41.7))


def isles_case(
    source: Path,
    subject: str,
    *,
    layout: str = "zenodo",
    session: str = "ses-0001",
    mask: bool = True,
    ending: str = ".nii.gz",
    dwi_affine: np.ndarray = DWI_AFFINE,
    flair_affine: np.ndarray = FLAIR_AFFINE,
    dwi_shape: Sequence[int] = DWI_SHAPE,
    flair_shape: Sequence[int] = FLAIR_SHAPE,
    image: Callable[[np.ndarray], np.ndarray] | None = None,
    lesion: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Path:
    """One session; ``image`` and ``lesion`` give the values at RAS positions (mm). Data types as in the release."""
    image = image or (lambda p: 100 + 0.5 * p[..., 0] + p[..., 1] - 0.25 * p[..., 2])
    lesion = lesion or (lambda p: np.linalg.norm(p - np.array([3, -20, 40]), axis=-1) < 9)
    name = f"{subject}_{session}"
    if layout == "zenodo":
        base = source / subject / session
        places = {"dwi": base / "dwi", "adc": base / "dwi", "FLAIR": base / "anat"}
    else:
        base = source / "rawdata" / subject / session
        places = {"dwi": base, "adc": base, "flair": base}
    for (kind, folder), dtype in zip(places.items(), (np.float64, np.float32, np.uint16), strict=True):
        shape, matrix = (flair_shape, flair_affine) if kind.lower() == "flair" else (dwi_shape, dwi_affine)
        values = image(positions(shape, matrix))
        values = np.rint(values * 10) if dtype is np.uint16 else values
        write(folder / f"{name}_{kind}{ending}", values.astype(dtype), matrix)
    if mask:
        inside = lesion(positions(dwi_shape, dwi_affine)).astype(np.uint8)
        write(source / "derivatives" / subject / session / f"{name}_msk{ending}", inside, dwi_affine)
    return base


def msd_task(
    parent: Path,
    cases: int = 6,
    *,
    channels: Sequence[str] = ("MRI",),
    tests: int = 0,
    folder: str = "Task04_Hippocampus",
) -> Path:
    """A Decathlon task; more than one channel makes 4D images."""
    task = parent / folder
    shape = (12, 14, 10)
    matrix = affine((1, 1, 1), orientation=np.eye(4), origin=(1, 1, 1))
    names = [f"hippocampus_{number:03d}" for number in range(1, cases + 1)]
    for number, name in enumerate(names):
        volumes = [np.full(shape, 10 * number + channel, np.float32) for channel in range(len(channels))]
        write(task / f"imagesTr/{name}.nii.gz", volumes[0] if len(channels) == 1 else np.stack(volumes, -1), matrix)
        label = np.zeros(shape, np.uint8)
        label[2:6, 3:7, 2:5], label[6:9, 3:7, 5:8] = 1, 2
        write(task / f"labelsTr/{name}.nii.gz", label, matrix)
    held = [f"hippocampus_{number:03d}" for number in range(901, 901 + tests)]
    for name in held:
        volumes = [np.full(shape, channel, np.float32) for channel in range(len(channels))]
        write(task / f"imagesTs/{name}.nii.gz", volumes[0] if len(channels) == 1 else np.stack(volumes, -1), matrix)
    (task / "imagesTr/._hippocampus_001.nii.gz").write_bytes(b"finder")
    content = {
        "name": "Hippocampus",
        "description": "Left and right hippocampus",
        "reference": "Vanderbilt University Medical Center",
        "licence": "CC-BY-SA 4.0",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "test": [f"./imagesTs/{name}.nii.gz" for name in held],
    }
    (task / "dataset.json").write_text(json.dumps(content))
    return task


def edit(
    path: Path, change: Callable[[np.ndarray], np.ndarray] | None = None, shift: Sequence[float] = (0, 0, 0)
) -> None:
    """Damage a written image: its voxels, or its origin by ``shift`` millimetres."""
    image = nibabel.load(path)
    array, matrix = np.asanyarray(image.dataobj).copy(), image.affine.copy()
    matrix[:3, 3] += shift
    write(path, array if change is None else change(array), matrix)


def unpack_into_folder(path: Path) -> None:
    """``x.nii.gz`` becomes a folder of that name with ``x.nii`` in it, as some programs unpack it."""
    content = gzip.decompress(path.read_bytes())
    path.unlink()
    path.mkdir()
    (path / path.name.removesuffix(".gz")).write_bytes(content)


def truncate(path: Path) -> None:
    """Cut a file short, as a download that broke off."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


def flip_byte(path: Path) -> None:
    """Change one voxel byte behind the checksum's back."""
    voxels = bytearray(gzip.decompress(path.read_bytes()))
    intact = gzip.compress(bytes(voxels), mtime=0)
    voxels[1000] ^= 0xFF
    path.write_bytes(gzip.compress(bytes(voxels), mtime=0)[:-8] + intact[-8:])


def tree_hash(*folders: Path) -> str:
    """Names, contents and times of everything below ``folders``."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            digest.update(f"{path} {path.lstat().st_mtime_ns}".encode())
            if path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()


ONE = ConversionOptions(processes=1)


def download(source: Path, patients: int = 5) -> Path:
    for patient in range(patients):
        brats_case(source, f"BraTS-GLI-{patient:05d}-100")
    return source


def brats_download(source: Path, patients: int = 6) -> Path:
    """``patients`` patients, the first two with three time points."""
    folder = source / "training_data1_v2"
    for patient in range(5, 5 + patients):
        for time_point in range(100, 103 if patient < 7 else 101):
            brats_case(folder, f"BraTS-GLI-{patient:05d}-{time_point}")
    return folder


def isles_download(source: Path, layout: str = "zenodo", subjects: int = 5) -> Path:
    for number in range(1, subjects + 1):
        isles_case(source, f"sub-strokecase{number:04d}", layout=layout)
    return source
