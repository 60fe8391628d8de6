"""nnU-Net's datasets: their numbers, and the file that describes one."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.training.dataloading import nnunet_dataset
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets


def default_processes() -> int:
    """As many as nnU-Net's own commands take (``nnUNet_def_n_proc``), but no more than there are cores."""
    return max(1, min(int(default_num_processes), os.cpu_count() or 1))


def block_sizes(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and chunks that nnU-Net stores an array with, so that a patch needs few of them.

    Args:
        shape: ``(channels, *spatial)``, three spatial axes.
        patch_size: two or three axes.
        itemsize: bytes of a value.
    """
    blocks, chunks = nnunet_dataset.comp_blosc2_params(tuple(shape), tuple(patch_size), itemsize)
    return tuple(blocks), tuple(chunks)


def write_preprocessed_case(
    path: Path, data: np.ndarray, segmentation: np.ndarray, properties: dict[str, Any], patch_size: Sequence[int]
) -> None:
    """Write a case as nnU-Net's preprocessing does.

    Args:
        path: without ending.
        data: ``(C, *spatial)``, float32.
        segmentation: ``(1, *spatial)``, int8.
        properties: for loaders ``class_locations`` is enough.
        patch_size: of the configuration.
    """
    arrays = {"": data, "_seg": segmentation}
    layout: dict[str, tuple[int, ...]] = {}
    for suffix, array in arrays.items():
        blocks, chunks = block_sizes(array.shape, patch_size, array.itemsize)
        layout |= {f"blocks{suffix}": blocks, f"chunks{suffix}": chunks}
    nnunet_dataset.nnUNetDatasetBlosc2.save_case(data, segmentation, properties, str(path), **layout)


def preprocessed_cases(folder: Path, cases: Sequence[str] | None = None) -> nnUNetBaseDataset:
    """nnU-Net's dataset of a folder of preprocessed cases, of whichever of its formats; all cases, or those named."""
    chosen = None if cases is None else list(cases)
    return nnunet_dataset.infer_dataset_class(str(folder))(str(folder), chosen)


def case_shape(dataset: nnUNetBaseDataset, case: str) -> tuple[int, ...]:
    """Shape ``(channels, *spatial)`` of a preprocessed case, from the file's header alone."""
    archive = Path(dataset.source_folder, f"{case}.npz")
    if not archive.is_file():  # blocks, which are read when they are indexed
        return tuple(dataset.load_case(case)[0].shape)
    with zipfile.ZipFile(archive) as file, file.open("data.npy") as array:
        version = np.lib.format.read_magic(array)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return tuple(read(array)[0])


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
