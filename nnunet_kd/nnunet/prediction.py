"""nnU-Net's prediction in its parts: a case read, windows placed, logits written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.data_iterators import PreprocessAdapter
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

DEFAULT_STEP = 0.5
"""Of the sliding window, as a share of the patch."""


def read_case(predictor: nnUNetPredictor, images: Sequence[Path], previous: Path | None = None) -> dict[str, Any]:
    """nnU-Net's preprocessing of one case.

    Args:
        predictor: initialised.
        images: one file a channel.
        previous: the first stage's segmentation, for a cascade.

    Returns:
        ``data (channels, *spatial)`` and ``data_properties``.
    """
    adapter = PreprocessAdapter(
        [[str(path) for path in images]], [None if previous is None else str(previous)],
        predictor.configuration_manager.preprocessor_class(verbose=False), [None],
        predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager,
    )  # fmt: skip
    item: dict[str, Any] = next(adapter)
    return item


def network_input(trainer: Any, dataset: nnUNetBaseDataset, case: str) -> torch.Tensor:
    """A preprocessed case as the network takes it, ``(channels, *spatial)``; in a cascade with the previous stage's labels.

    Args:
        trainer: nnU-Net's.
        dataset: of its preprocessed cases.
        case: one of them.
    """
    data, _, previous, _ = dataset.load_case(case)
    image = np.asarray(data[:])
    if trainer.is_cascaded:
        labels = trainer.label_manager.foreground_labels
        image = np.vstack((image, convert_labelmap_to_one_hot(previous[:], labels, output_dtype=image.dtype)))
    return torch.from_numpy(image)


def export_case(
    predictor: nnUNetPredictor,
    logits: np.ndarray,
    properties: dict[str, Any],
    truncated: Path,
    probabilities: bool,
    ending: str,
) -> None:
    """nnU-Net's export of one case's logits.

    Args:
        predictor: as in :func:`read_case`.
        logits: ``(heads, *spatial)`` in the network's axes and spacing.
        properties: the case's ``data_properties``.
        truncated: the output's path without ending.
        probabilities: also write ``.npz`` and ``.pkl``.
        ending: of the segmentation's file.
    """
    export_prediction_from_logits(
        logits, properties, predictor.configuration_manager, predictor.plans_manager,
        {**predictor.dataset_json, "file_ending": ending}, str(truncated), probabilities,
    )  # fmt: skip


def remove_probabilities(folder: Path, case: str) -> None:
    """Delete the ``.npz`` and ``.pkl`` of a case, as :func:`export_case` writes them, where they are there."""
    for ending in (".npz", ".pkl"):
        (folder / f"{case}{ending}").unlink(missing_ok=True)


def windows(predictor: nnUNetPredictor, shape: Sequence[int]) -> list[Any]:
    """The places of a predictor's patches in an image ``(channels, *shape)``, as indices."""
    slicers: list[Any] = predictor._internal_get_sliding_window_slicers(torch.Size(shape))
    return slicers


def window_starts(shape: Sequence[int], patch: Sequence[int], step: float = DEFAULT_STEP) -> list[list[int]]:
    """Where the sliding window starts, by axis; the image is at least as large as the patch."""
    starts: list[list[int]] = compute_steps_for_sliding_window(tuple(shape), tuple(patch), step)
    return starts
