"""Synthetic two-contrast 3D MRI of a head with irregular lesions and thin vessels.

Made for demonstrations and tests, not for science: what makes small networks lose detail is in it (thin structures, ragged
borders, anisotropic voxels, intensity drift, signal-dependent noise), and it comes from a seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

SHAPE = (16, 40, 40)
"""Voxels, slices first."""
SPACING = (2.0, 1.0, 1.0)
"""Millimetres per voxel, slices first."""
LABELS = {"background": 0, "lesion": 1, "vessel": 2}
CHANNELS = {"0": "T1", "1": "FLAIR"}

# signal of each tissue in (T1, FLAIR), in units of white matter's
_SIGNAL = {
    "fluid": (0.25, 0.10),
    "grey": (0.65, 0.85),
    "white": (1.0, 0.70),
    "lesion": (0.40, 1.70),
    "vessel": (1.90, 0.25),
}


@dataclass(frozen=True)
class PhantomCase:
    """``image (2, *SHAPE)`` float32 and ``labels SHAPE`` uint8."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


def make_case(seed: int) -> PhantomCase:
    """One head: brain with folded grey matter and ventricles, one to three lesions, two vessels."""
    random = np.random.default_rng(seed)
    grid = _millimetres()
    head = (grid[0] / 15) ** 2 + (grid[1] / 18.5) ** 2 + (grid[2] / 17) ** 2 + 0.05 * _texture(random, 7) < 1
    depth = ndimage.distance_transform_edt(head, sampling=SPACING)
    folded = depth + 1.3 * _texture(random, 2.2)
    ventricles = (
        (grid[0] / 6) ** 2 + (grid[1] / 7) ** 2 + (np.abs(grid[2]) - 3.5) ** 2 / 5 + 0.3 * _texture(random, 4)
    ) < 0.9

    tissue = {
        "fluid": head & ((folded < 1.2) | ventricles),
        "grey": head & (folded >= 1.2) & (folded < 4.2) & ~ventricles,
        "white": head & (folded >= 4.2) & ~ventricles,
    }
    labels = np.zeros(SHAPE, np.uint8)
    for _ in range(int(random.integers(1, 4))):
        labels[_lesion(random, grid, tissue["white"])] = LABELS["lesion"]
    for _ in range(2):
        labels[_vessel(random, grid) & head] = LABELS["vessel"]
    tissue |= {"lesion": labels == LABELS["lesion"], "vessel": labels == LABELS["vessel"]}

    image = np.zeros((2, *SHAPE))
    for name, signals in _SIGNAL.items():
        for channel, signal in enumerate(signals):
            image[channel][tissue[name]] = signal
    for channel in range(2):
        blurred = ndimage.gaussian_filter(image[channel] * (1 + 0.06 * _texture(random, 2)), (0.35, 0.6, 0.6))
        drift = np.exp(0.12 * _texture(random, 14))
        noise = random.normal(0, 0.05, (2, *SHAPE))
        image[channel] = 400 * np.hypot(blurred * drift + noise[0], noise[1])
    return PhantomCase(image.astype(np.float32), labels)


def _millimetres() -> NDArray[np.float64]:
    axes = [(np.arange(size) - (size - 1) / 2) * spacing for size, spacing in zip(SHAPE, SPACING, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _texture(random: np.random.Generator, millimetres: float) -> NDArray[np.float64]:
    """Smooth noise with this correlation length, mean 0, standard deviation 1."""
    noise = ndimage.gaussian_filter(
        random.normal(size=SHAPE), [millimetres / spacing for spacing in SPACING], mode="wrap"
    )
    scaled: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return scaled


def _lesion(random: np.random.Generator, grid: NDArray[np.float64], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A ragged blob around a random point of ``allowed``, with satellites where the texture carries it."""
    candidates = np.argwhere(allowed)
    centre = grid[(slice(None), *candidates[random.integers(len(candidates))])]
    radius = random.uniform(4, 7)
    distance = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0)) / radius
    blob: NDArray[np.bool_] = (distance + 0.35 * _texture(random, 1.6) < 1) & allowed
    return blob


def _vessel(random: np.random.Generator, grid: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A bending tube, a little under two millimetres in radius."""
    steps = 60
    directions = ndimage.gaussian_filter1d(random.normal(size=(steps, 3)), 8, axis=0) + random.normal(size=3) * 0.35
    path = np.cumsum(directions / np.linalg.norm(directions, axis=1, keepdims=True), axis=0) * 0.9
    path += random.uniform(-8, 8, 3) - path[steps // 2]
    distance = np.full(SHAPE, np.inf)
    for point in path:
        distance = np.minimum(distance, ((grid - point[:, None, None, None]) ** 2).sum(0))
    tube: NDArray[np.bool_] = distance < random.uniform(1.5, 2.1) ** 2
    return tube


def write_dataset(folder: Path, training: int, test: int, seed: int = 0) -> None:
    """An nnU-Net raw dataset: ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs``, ``dataset.json``.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_Name``; made if missing.
        training, test: numbers of cases.
        seed: of the first case; the others count on.
    """
    for index in range(training + test):
        part = "Tr" if index < training else "Ts"
        name = f"head_{index:03d}"
        case = make_case(seed + index)
        for channel, volume in enumerate(case.image):
            _write(volume, folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz")
        _write(case.labels, folder / f"labels{part}" / f"{name}.nii.gz")
    description: dict[str, Any] = {
        "name": "Phantom",
        "description": "synthetic heads with lesions and vessels",
        "channel_names": CHANNELS,
        "labels": LABELS,
        "numTraining": training,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")


def _write(volume: NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path), useCompression=True)
