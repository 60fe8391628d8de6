"""The table of differences that count, against nnU-Net's own preprocessing of plans with one field changed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.data_comparison import Verdict
from nnunet_kd.distillation.data_description import TOLERANCE
from tests.distillation.compared_plans import DATASET_JSON, NAME, PLANS, compare, with_entry


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
