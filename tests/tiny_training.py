"""A preprocessed dataset so small that nnU-Net's own loop takes milliseconds per epoch, and a trainer on it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_kd.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans

CASES = [f"case_{index}" for index in range(5)]
SHORT = ("iterations_per_epoch=2", "validation_iterations=1", "seed=5")
"""Settings of a run with epochs as short as they can be."""


def write_tiny_dataset(**options: Any) -> dict[str, Any]:
    """Five random cases in nnU-Net's preprocessed format, its split, and an untrained teacher; returns the plan."""
    plans = make_plans(**{"features": (8, 16), "patch": (8, 8, 8), **options})
    write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    folder = Path(os.environ["nnUNet_preprocessed"]) / plans["dataset_name"]
    cases = folder / "nnUNetPlans_3d_fullres"
    for leftover in cases.glob("case.*"):
        leftover.unlink()
    random = np.random.default_rng(0)
    for name in CASES:
        data = random.standard_normal((1, 12, 12, 12), dtype=np.float32)
        segmentation = random.integers(0, 3, (1, 12, 12, 12)).astype(np.int8)
        locations = {label: np.argwhere(segmentation == label) for label in (1, 2)}
        nnUNetDatasetBlosc2.save_case(data, segmentation, {"class_locations": locations}, str(cases / name))
    split = [{"train": CASES[:4], "val": CASES[4:]}]
    (folder / "splits_final.json").write_text(json.dumps(split))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return plans
