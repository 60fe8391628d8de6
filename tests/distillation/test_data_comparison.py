"""What a teacher and a student may differ in: what the comparison with real preprocessing does not reach."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from nnunet_kd.distillation.data_comparison import CONFIGURATION, DATASET, PLAN, Verdict
from nnunet_kd.errors import TeacherError
from nnunet_kd.models.plans import read_plans, reduce_plans
from nnunet_kd.system.shipped import shipped_folder
from tests.distillation.compared_plans import DATASET_JSON, NAME, PLANS, compare, with_entry


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_name": "Dataset001_Other", "plans_name": "nnUNetPlans_other"},
        {"original_median_shape_after_transp": [9, 9, 9], "experiment_planner_used": "ResEncUNetPlanner"},
        {"transpose_backward": [2, 1, 0]},
    ],
)
def test_names_and_planning_do_not_count(change: dict[str, Any]) -> None:
    assert compare({**deepcopy(PLANS), **change}) == []


def test_other_spellings_of_the_same_do_not_count() -> None:
    plans = with_entry(spacing=[1, 1, 1], previous_stage=None)
    del plans["label_manager"]
    kwargs = plans["configurations"][NAME]["resampling_fn_data_kwargs"]
    del kwargs["order_z"], kwargs["is_seg"], kwargs["separate_z_anisotropy_threshold"]  # nnU-Net's defaults
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    own = plans["configurations"].pop(NAME)
    plans["configurations"] = {"base": {**own, "batch_size": 9}, NAME: {"inherits_from": "base"}}
    assert compare(plans) == []


def test_a_student_of_the_same_plan_fits() -> None:
    assert compare(PLANS, reduce_plans(PLANS, 4)) == []


def test_intensities_count_with_ct_normalisation_only() -> None:
    plans = deepcopy(PLANS)
    plans["foreground_intensity_properties_per_channel"]["1"]["mean"] += 50
    assert compare(plans) == []
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 50
    (found,) = compare(plans)
    assert found.verdict is Verdict.REFUSED
    assert "channel 0: teacher percentile_00_5 -900.0, percentile_99_5 950.0, mean 60.0" in str(found)


def test_what_a_cascade_reads_counts_there() -> None:
    changed = with_entry(resampling_fn_seg="no_resampling_hack")
    assert {one.verdict for one in compare(changed)} == {Verdict.WARNED}
    cascade = {"previous_stage": "3d_lowres"}
    found = compare(with_entry(resampling_fn_seg="no_resampling_hack", **cascade), with_entry(**cascade))
    assert {one.verdict for one in found} == {Verdict.REFUSED}


def test_patch_and_strides_are_refused_beside_the_criterion() -> None:
    plans = with_entry(patch_size=[16, 16, 32])
    plans["configurations"][NAME]["architecture"]["arch_kwargs"]["strides"][1] = [1, 2, 2]
    assert [(one.key, one.verdict) for one in compare(plans)] == [
        ("patch_size", Verdict.REFUSED),
        ("architecture", Verdict.REFUSED),
    ]


def test_unknown_entries_warn_if_they_differ() -> None:
    assert compare(with_entry(of_another_lab=1), with_entry(of_another_lab=1)) == []
    (found,) = compare({**PLANS, "of_another_lab": 1}, {**PLANS, "of_another_lab": 2})
    assert (found.verdict, str(found)) == (Verdict.WARNED, "of_another_lab: teacher 1, student 2")


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}


@pytest.mark.parametrize(
    ("teacher", "student", "told"),
    [
        ({"labels": {"tumour": 2, "liver": 1, "background": 0}}, {}, None),
        ({"regions_class_order": [2, 1]}, {}, None),
        ({"channel_names": {"1": "PET", "0": "CT"}}, {}, None),
        ({"modality": {"0": "CT", "1": "PET"}}, {}, None),
        ({"modality": ["CT"]}, {"modality": {"0": "MRI", "1": "MRI"}}, None),
        ({"channel_names": {}}, {}, "input channels: teacher 0, student 2"),
        ({"name": "other", "numTraining": 9, "file_ending": ".mha"}, {}, None),
        ({"channel_names": {"0": "PET", "1": "CT"}}, {}, "channel names, in order: teacher PET, CT; student CT, PET"),
        ({"channel_names": {"0": "CT"}}, {}, "input channels: teacher 1, student 2"),
        ({"labels": {"background": 0, "liver": 2, "tumour": 1}}, {}, "labels: teacher 0 background, 1 tumour, 2 liver"),
        ({"labels": {"background": 0, "liver": 1}}, {}, "labels: teacher 0 background, 1 liver, student 0 background, 1"),
        (REGIONS, {}, "labels: teacher whole"),
        (REGIONS, REGIONS, None),
        ({**REGIONS, "labels": {"background": 0, "whole": [2, 1], "core": 2}}, REGIONS, None),
        ({**REGIONS, "labels": {"background": 0, "core": [2], "whole": [1, 2]}}, REGIONS, "labels: teacher core"),
        ({**REGIONS, "regions_class_order": [2, 1]}, REGIONS, r"regions_class_order: teacher \[2, 1\], student \[1, 2\]"),
    ],
)  # fmt: skip
def test_heads_and_channels_must_mean_the_same(teacher: dict, student: dict, told: str | None) -> None:
    found = compare(PLANS, dataset={**DATASET_JSON, **teacher}, student_dataset={**DATASET_JSON, **student})
    if told is None:
        assert found == []
    else:
        assert found[0].verdict is Verdict.REFUSED
        assert re.search(told, "; ".join(map(str, found)))


def test_a_label_to_ignore_is_warned_of() -> None:
    labels = {**DATASET_JSON["labels"], "ignore": 3}
    (found,) = compare(PLANS, dataset={**DATASET_JSON, "labels": labels})
    assert found.verdict is Verdict.WARNED


def test_labels_that_do_not_hold_are_told() -> None:
    with pytest.raises(TeacherError, match=r"Background label not declared.*Correct that file"):
        compare(PLANS, dataset={**DATASET_JSON, "labels": {"liver": 1}})


def test_the_table_knows_every_key_that_nnunet_writes(tmp_path: Path) -> None:
    for path in (shipped_folder("plans") / "reference").glob("*.json"):
        plans = read_plans(path)
        assert set(plans) <= set(PLAN)
        assert {key for inner in plans["configurations"].values() for key in inner} <= set(CONFIGURATION)
    generate_dataset_json(
        str(tmp_path), {0: "CT"}, {"background": 0, "whole": [1, 2], "core": 2}, 1, ".nii.gz", "a citation", (1, 2),
        "a name", "a reference", "a release", "a description", "SimpleITKIO",
    )  # fmt: skip
    assert set(json.loads((tmp_path / "dataset.json").read_text())) <= set(DATASET)
