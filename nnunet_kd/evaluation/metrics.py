"""Overlap, distance, volume and lesion metrics of one pair of masks.

MONAI computes the surface distances. Distances are in mm and volumes in ml; fractions (Dice, NSD, lesion F1) lie in
[0, 1].
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

Mask = npt.NDArray[np.bool_]

# MONAI 1.6 warns about an argument that it passes to itself
warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)


@dataclass(frozen=True)
class Metric:
    """How a metric is named, scaled and read.

    Attributes:
        name: key in files.
        title: what tables call it, without unit.
        unit: of the displayed value; ``%`` means that the stored fraction is multiplied by 100 for display.
        better: 1 if higher is better, -1 if lower is, 0 if neither.
        signed: whether values are differences, which are shown with their sign.
    """

    name: str
    title: str
    unit: str
    better: Literal[-1, 0, 1]
    signed: bool = False

    @property
    def scale(self) -> float:
        """Factor from the stored to the displayed value."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def heading(self) -> str:
        """Title, unit and the direction that is better, as in the papers' tables."""
        return f"{self.title} ({self.unit})" + {1: " ↑", -1: " ↓", 0: ""}[self.better]


DICE = Metric("dice", "Dice", "%", 1)
HD95 = Metric("hd95", "HD95", "mm", -1)
NSD = Metric("nsd", "NSD", "%", 1)
VOLUME_DIFFERENCE = Metric("volume_difference", "Volume difference", "ml", 0, signed=True)
LESION_F1 = Metric("lesion_f1", "Lesion F1", "%", 1)
METRICS = (DICE, HD95, NSD, VOLUME_DIFFERENCE, LESION_F1)

COUNTS = (
    "reference_volume",
    "prediction_volume",
    "reference_lesions",
    "prediction_lesions",
    "missed_lesions",
    "false_lesions",
)
"""What is stored beside the metrics: volumes in ml, and numbers of connected components."""


@dataclass(frozen=True)
class MetricOptions:
    """Conventions of an evaluation.

    Attributes:
        nsd_tolerance: mm within which two surfaces count as the same.
        empty: both masks empty: ``nan`` leaves the case out of means, as nnU-Net does for Dice; ``perfect`` gives 1
            (HD95: 0 mm).
        hd95_penalty: mm, HD95 where exactly one mask is empty; ``None`` leaves such a case out of HD95's mean.
    """

    nsd_tolerance: float = 1.0
    empty: Literal["nan", "perfect"] = "nan"
    hd95_penalty: float | None = None


def measure(
    prediction: Mask, reference: Mask, spacing: tuple[float, ...], options: MetricOptions | None = None
) -> dict[str, float]:
    """All metrics and counts of one class in one case.

    Args:
        prediction, reference: same shape, 2D or 3D; a leading axis of length 1 is measured in its plane.
        spacing: mm per voxel along each axis.
        options: default :class:`MetricOptions`.

    Returns:
        One value for every entry of :data:`METRICS` and :data:`COUNTS`; NaN where a metric is not defined. Where
        exactly one mask is empty, Dice, NSD and lesion F1 are 0.

    Raises:
        ValueError: shapes or spacing that do not belong together.
    """
    options = options or MetricOptions()
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise ValueError(f"shapes {prediction.shape} and {reference.shape} with spacing {spacing} do not match.")
    prediction, reference, spacing, voxel_volume = _drop_single_slice(prediction, reference, spacing)
    n_prediction, n_reference = int(prediction.sum()), int(reference.sum())
    result = {
        "reference_volume": n_reference * voxel_volume / 1000.0,
        "prediction_volume": n_prediction * voxel_volume / 1000.0,
        VOLUME_DIFFERENCE.name: (n_prediction - n_reference) * voxel_volume / 1000.0,
    }
    lesions = match_lesions(prediction, reference)
    result |= lesions.counts()
    if n_prediction and n_reference:
        prediction, reference = _crop_to_content(prediction, reference)
        result[DICE.name] = 2.0 * int((prediction & reference).sum()) / (n_prediction + n_reference)
        result[HD95.name] = hausdorff_distance_95(prediction, reference, spacing)
        result[NSD.name] = surface_dice(prediction, reference, spacing, options.nsd_tolerance)
        result[LESION_F1.name] = lesions.f1
    elif n_prediction or n_reference:
        result |= {DICE.name: 0.0, NSD.name: 0.0, LESION_F1.name: 0.0}
        result[HD95.name] = np.nan if options.hd95_penalty is None else options.hd95_penalty
    else:
        perfect = options.empty == "perfect"
        result |= dict.fromkeys((DICE.name, NSD.name, LESION_F1.name), 1.0 if perfect else np.nan)
        result[HD95.name] = 0.0 if perfect else np.nan
    return {name: float(value) for name, value in result.items()}


def hausdorff_distance_95(prediction: Mask, reference: Mask, spacing: tuple[float, ...]) -> float:
    """95th percentile Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    Surfaces are the voxels that an erosion by the 6-neighbourhood (2D: 4) removes; distances run between voxel
    centres. Both masks must hold something.
    """
    return float(compute_hausdorff_distance(_one_hot(prediction), _one_hot(reference), percentile=95, spacing=spacing))


def surface_dice(prediction: Mask, reference: Mask, spacing: tuple[float, ...], tolerance: float) -> float:
    """Normalised surface Dice: share of both surfaces' area within ``tolerance`` mm of the other surface.

    Area-weighted as in Nikolov et al. (arXiv:1809.04430), which makes it depend on the surface and not on how many
    voxels a spacing happens to give it. Both masks must hold something.
    """
    return float(
        compute_surface_dice(
            _one_hot(prediction), _one_hot(reference), class_thresholds=[tolerance], spacing=spacing, use_subvoxels=True
        )
    )


@dataclass(frozen=True)
class LesionMatch:
    """Connected components (26-neighbourhood, 2D: 8) of both masks, matched by overlap of at least one voxel.

    This is the lesion-wise F1 of the ISLES 2022 challenge (Hernandez Petzsche et al., Scientific Data 9, 762).

    Attributes:
        reference, prediction: number of components.
        missed: reference components without a predicted voxel.
        false: predicted components without a reference voxel.
    """

    reference: int
    prediction: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """``TP / (TP + (FP + FN) / 2)`` with TP the reference components that were found; NaN without any component."""
        found = self.reference - self.missed
        wrong = 0.5 * (self.false + self.missed)
        return found / (found + wrong) if found + wrong else float("nan")

    def counts(self) -> dict[str, float]:
        """The four counts, by their names in :data:`COUNTS`."""
        return {
            "reference_lesions": self.reference,
            "prediction_lesions": self.prediction,
            "missed_lesions": self.missed,
            "false_lesions": self.false,
        }


def match_lesions(prediction: Mask, reference: Mask) -> LesionMatch:
    """Label both masks' components and match them; see :class:`LesionMatch`."""
    structure = ndimage.generate_binary_structure(reference.ndim, reference.ndim)
    reference_labels, n_reference = ndimage.label(reference, structure)
    prediction_labels, n_prediction = ndimage.label(prediction, structure)
    overlap = prediction & reference
    found = np.unique(reference_labels[overlap]).size
    right = np.unique(prediction_labels[overlap]).size
    return LesionMatch(int(n_reference), int(n_prediction), int(n_reference) - found, int(n_prediction) - right)


def _one_hot(mask: Mask) -> torch.Tensor:
    """MONAI's form, batch and channel first; a single channel is what it measures."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


def _drop_single_slice(
    prediction: Mask, reference: Mask, spacing: tuple[float, ...]
) -> tuple[Mask, Mask, tuple[float, ...], float]:
    """One slice is measured in its plane and counts as 1 mm thick: nnU-Net makes up a spacing across 2D images."""
    if prediction.ndim == 3 and prediction.shape[0] == 1:
        prediction, reference, spacing = prediction[0], reference[0], spacing[1:]
    return prediction, reference, tuple(float(step) for step in spacing), float(np.prod(spacing))


def _crop_to_content(prediction: Mask, reference: Mask) -> tuple[Mask, Mask]:
    """Both masks around their union, one voxel of background kept; edges of the image stay where they are.

    Lesions are small in large volumes, and all that follows costs in proportion to the volume.
    """
    (box,) = ndimage.find_objects((prediction | reference).astype(np.uint8))
    box = tuple(slice(max(0, edge.start - 1), edge.stop + 1) for edge in box)
    return prediction[box], reference[box]
