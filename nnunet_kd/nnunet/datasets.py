"""nnU-Net's datasets: their numbers, and the file that describes one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets


def default_processes() -> int:
    """As many as nnU-Net's own commands take (``nnUNet_def_n_proc``), but no more than there are cores."""
    return max(1, min(int(default_num_processes), os.cpu_count() or 1))


def datasets_of_number(number: int) -> list[str]:
    """Names of all datasets with a number, in any of nnU-Net's folders."""
    return list(find_candidate_datasets(number))


def write_dataset_json(
    folder: Path,
    channels: Sequence[str],
    labels: Mapping[str, Any],
    training_cases: int,
    file_ending: str,
    regions_class_order: Sequence[int] | None,
    **more: Any,
) -> None:
    """``dataset.json``, checked by nnU-Net.

    Args:
        folder: that it is written to.
        channels: names, in order.
        labels: by name: a number, or the numbers of a region.
        training_cases: how many.
        file_ending: of images and segmentations.
        regions_class_order: with regions.
        more: further entries.
    """
    generate_dataset_json(
        str(folder),
        channel_names=dict(enumerate(channels)),
        labels=dict(labels),
        num_training_cases=training_cases,
        file_ending=file_ending,
        regions_class_order=regions_class_order,
        **more,
    )
