"""A plan of two channels, and what a teacher's and a student's differ in."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from nnunet_kd.distillation.data_comparison import Difference, compare_data
from nnunet_kd.distillation.data_description import DataDescription
from tests.conftest import make_plans

NAME = "3d_fullres"
DATASET_JSON: dict[str, Any] = {
    "name": "Tiny",
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
CT = {"mean": 10.0, "median": 5.0, "std": 200.0, "min": -1900.0, "max": 1900.0} | {
    "percentile_00_5": -900.0,
    "percentile_99_5": 950.0,
}


def plans_of_two_channels() -> dict[str, Any]:
    plans = make_plans(channels=2)
    plans["foreground_intensity_properties_per_channel"] = {"0": dict(CT), "1": dict(CT)}
    configuration = plans["configurations"][NAME]
    configuration["normalization_schemes"] = ["CTNormalization", "ZScoreNormalization"]
    configuration["resampling_fn_data_kwargs"]["separate_z_anisotropy_threshold"] = 3
    return plans


PLANS = plans_of_two_channels()


def compare(
    teacher: dict[str, Any], student: dict[str, Any] = PLANS, dataset: dict[str, Any] = DATASET_JSON, **own: Any
) -> list[Difference]:
    return compare_data(
        DataDescription(teacher, NAME, dataset),
        DataDescription(student, NAME, own.get("student_dataset", DATASET_JSON)),
    )


def with_entry(**entries: Any) -> dict[str, Any]:
    plans = deepcopy(PLANS)
    plans["configurations"][NAME].update(entries)
    return plans
