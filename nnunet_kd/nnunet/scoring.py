"""nnU-Net's own comparison of segmentations with their references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray


def mask_of(segmentation: NDArray[Any], label_or_region: int | tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a segmentation has a label, or one of a region's labels."""
    mask: NDArray[np.bool_] = evaluate_predictions.region_or_label_to_mask(segmentation, label_or_region)
    return mask


def folder_metrics(
    references: Path,
    predictions: Path,
    reader: BaseReaderWriter,
    file_ending: str,
    labels_or_regions: Sequence[Any],
    ignore_label: int | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """What nnU-Net writes to ``summary.json`` about a folder of predictions; nothing is written.

    Args:
        references, predictions: folders of files of the same names; references without prediction are left out.
        reader: of both.
        file_ending: of both.
        labels_or_regions: to measure.
        ignore_label: voxels of the references that do not count.
        processes: to measure with.
    """
    metrics: dict[str, Any] = evaluate_predictions.compute_metrics_on_folder(
        str(references), str(predictions), None, reader, file_ending, labels_or_regions, ignore_label, processes,
        chill=True,
    )  # fmt: skip
    return metrics


def write_summary(references: Path, predictions: Path, labels: Sequence[int], processes: int) -> Path:
    """nnU-Net's ``summary.json`` beside predictions, of which every reference has one; returns its path."""
    summary = predictions / "summary.json"
    evaluate_predictions.compute_metrics_on_folder_simple(
        str(references), str(predictions), list(labels), str(summary), processes, chill=False
    )
    return summary
