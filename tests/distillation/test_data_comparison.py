"""What a teacher and a student may differ in: the table against nnU-Net's own preprocessing."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.data_comparison import (
    CONFIGURATION,
    DATASET,
    PLAN,
    Difference,
    Verdict,
    compare_data,
)
from nnunet_kd.distillation.data_description import TOLERANCE, DataDescription
from nnunet_kd.errors import TeacherError
from nnunet_kd.models.plans import read_plans, reduce_plans
from nnunet_kd.system.shipped import shipped_folder
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


# the files and what real preprocessing makes of them --------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Two cases of about 12 voxels a side, one of which nnU-Net resamples slice by slice; zero in a corner."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    cases = []
    for case, spacing in enumerate(((1.0, 1.2, 2.2), (0.8, 1.1, 4.6))):
        paths = []
        for channel in range(2):
            values = random.uniform(-1900, 1900, (10, 12, 11)).astype(np.float32)
            values[:4, :5, :6] = 0
            image = sitk.GetImageFromArray(values)
            image.SetSpacing(spacing)
            paths.append(str(folder / f"case{case}_{channel:04d}.nii.gz"))
            sitk.WriteImage(image, paths[-1])
        cases.append(paths)
    return cases


def preprocessed(plans: dict[str, Any], files: list[list[str]]) -> list[Any]:
    """Arrays of all cases, and the number of input channels; the error's name where nnU-Net cannot."""
    manager = PlansManager(deepcopy(plans))
    configuration = manager.get_configuration(NAME)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = [
                configuration.preprocessor_class(verbose=False).run_case(
                    case, None, manager, configuration, DATASET_JSON
                )[0]
                for case in files
            ]
            return [*found, np.array(determine_num_input_channels(manager, configuration, DATASET_JSON))]
    except Exception as error:  # whatever nnU-Net makes of a wrong plan
        return [type(error).__name__]


def arrays_differ(one: list[Any], other: list[Any]) -> bool:
    if len(one) != len(other):
        return True
    return any(
        a.shape != b.shape or not np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
        for a, b in zip(one, other, strict=True)
    )


# a plan with one field changed ------------------------------------------------------------------------------------------

SCHEMES = ["ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "CTNormalization", "OfAnotherLab"]
FUNCTIONS = ["resample_torch_fornnunet", "no_resampling_hack", "resample_of_another_lab"]
ANYTHING = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.lists(st.integers(0, 9), max_size=3))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "image_reader_writer": st.sampled_from(["NibabelIO", "NibabelIOWithReorient", "Tiff3DIO", "ReaderOfAnotherLab"]),
    "transpose_forward": st.permutations([0, 1, 2]),
    "preprocessor_name": st.just("PreprocessorOfAnotherLab"),
    "spacing": st.lists(st.sampled_from([0.7, 1.0, 1.5, 2.1]), min_size=3, max_size=3),
    "normalization_schemes": st.lists(st.sampled_from(SCHEMES), min_size=2, max_size=2),
    "use_mask_for_norm": st.lists(st.booleans(), min_size=2, max_size=2),
    "resampling_fn_data": st.sampled_from(FUNCTIONS),
    "previous_stage": st.just("3d_lowres"),
    "order": st.integers(0, 5),
    "order_z": st.integers(0, 3),
    "force_separate_z": st.sampled_from([True, False]),
    "separate_z_anisotropy_threshold": st.sampled_from([1.7, 8.0, 3.0]),
    "percentile_00_5": st.floats(-1500, 0),
    "percentile_99_5": st.floats(1, 1500),
    "mean": st.floats(-100, 100),
    "std": st.floats(1, 1000),
}
NOT_CHANGED = {"architecture", "configurations", "label_manager", "inherits_from", "is_seg"}
"""Left to other tests: what changes the network, and what cannot be changed alone."""


def paths(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a plan; those of dictionaries one by one."""
    for key, inner in value.items():
        if key in NOT_CHANGED:
            continue
        if isinstance(inner, dict):
            yield from paths(inner, (*place, key))
        else:
            yield (*place, key)


FIELDS = [
    *paths({key: value for key, value in PLANS.items() if key != "configurations"}),
    *(("configurations", NAME, *path) for path in paths(PLANS["configurations"][NAME])),
    ("configurations", NAME, "previous_stage"),
    ("configurations", NAME, "of_another_lab"),
    ("of_another_lab",),
]


@st.composite
def changed_plans(draw: st.DrawFn) -> dict[str, Any]:
    path = draw(st.sampled_from(FIELDS))
    plans = deepcopy(PLANS)
    inner = plans
    for key in path[:-1]:
        inner = inner[key]
    strategy = VALUES.get(path[-1], ANYTHING)
    if path[-1] in ("order", "order_z", "force_separate_z") and "seg" in str(path):
        strategy = st.integers(2, 5)
    inner[path[-1]] = draw(strategy)
    return plans


def with_entry(**entries: Any) -> dict[str, Any]:
    plans = deepcopy(PLANS)
    plans["configurations"][NAME].update(entries)
    return plans


_UNCHANGED: list[Any] = []


@settings(max_examples=100, deadline=None, derandomize=True)
@given(changed_plans())
@example(PLANS)
@example({**PLANS, "image_reader_writer": "NibabelIOWithReorient"})
@example({**PLANS, "image_reader_writer": "NibabelIO"})
@example(with_entry(use_mask_for_norm=[True, False]))
@example(with_entry(use_mask_for_norm=[False, True]))
@example(with_entry(batch_size=7, median_image_size_in_voxels=[1, 2, 3], data_identifier="other"))
def test_the_table_agrees_with_real_preprocessing(files: list[list[str]], plans: dict[str, Any]) -> None:
    if not _UNCHANGED:
        _UNCHANGED.extend(preprocessed(PLANS, files))
    found = compare(plans)
    refused = [difference for difference in found if difference.verdict is Verdict.REFUSED]
    # beside the criterion, and therefore not seen in arrays: the patch, and the previous stage's name
    judged = [one for one in refused if one.aspect.in_arrays or one.key == "previous_stage"]
    assert bool(judged) == arrays_differ(_UNCHANGED, preprocessed(plans, files)), [str(one) for one in found]


# what the property does not reach ---------------------------------------------------------------------------------------


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
