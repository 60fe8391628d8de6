"""Made-up preprocessed cases at a plan's shape, for what needs a dataset on disk: loaders, starts and soft labels.

Blobs stand for organs: maps of smooth shapes compress as real ones do, noise would not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_kd.nnunet.datasets import write_preprocessed_case
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.workflows.bench.pair import Shape, write_untrained_teacher

FOREGROUND_SHARE = 0.05
"""Of a case's voxels, per label."""
MOST_PLACES = 10_000
"""Foreground voxels per label that are kept for oversampling, as nnU-Net's preprocessing does."""
BLOB_WIDTH = 4
"""Standard deviation of the smoothing, in voxels."""


def write_made_up_dataset(shape: Shape, cases: int) -> dict[str, int]:
    """A preprocessed dataset with an untrained teacher of fold 0, in the folders that nnU-Net's variables name.

    Args:
        shape: its plan; cases have the plan's median size.
        cases: for training; one more validates.

    Returns:
        Bytes on disk, by case.
    """
    write_untrained_teacher(shape.plans, shape.configuration_name, shape.dataset_json)
    folder = Path(os.environ["nnUNet_preprocessed"]) / str(shape.plans["dataset_name"])
    own = folder / f"{shape.plans['plans_name']}_{shape.configuration_name}"
    for leftover in own.glob("case.*"):
        leftover.unlink()
    random = np.random.default_rng(0)
    names = [f"case_{place}" for place in range(cases + 1)]
    patch, found = shape.configuration["patch_size"], {}
    for name in names:
        data, segmentation, properties = _case(shape, random)
        write_preprocessed_case(own / name, data, segmentation, properties, patch)
        found[name] = sum(path.stat().st_size for path in own.glob(f"{name}*"))
    (folder / SPLITS_FILE).write_text(json.dumps([{"train": names[:-1], "val": names[-1:]}]))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return found


def _case(shape: Shape, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Images ``(C, *size)``, float32, in which labels can be seen; labels ``(1, *size)``, int8; where they are."""
    size = tuple(round(edge) for edge in shape.configuration["median_image_size_in_voxels"])
    labels = [value for value in shape.dataset_json["labels"].values() if value]
    segmentation = np.zeros(size, np.int8)
    for label in labels:
        field = ndimage.gaussian_filter(random.standard_normal(size), BLOB_WIDTH)
        segmentation[field > np.quantile(field, 1 - FOREGROUND_SHARE)] = label
    channels = len(channel_names(shape.dataset_json))
    data = random.standard_normal((channels, *size)).astype(np.float32) + segmentation
    locations = {label: random.permutation(np.argwhere(segmentation[None] == label))[:MOST_PLACES] for label in labels}
    return data, segmentation[None], {"class_locations": locations}
