"""Preprocessed arrays are nnU-Net's to the last bit, step by step and together; back-resampling, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero as stock_crop
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.errors import DataError, SegmentationError
from nnunet_kd_runtime.memory import Budget
from nnunet_kd_runtime.normalization import SCHEMES
from nnunet_kd_runtime.preprocessing import crop_to_nonzero, preprocess, without_holes
from nnunet_kd_runtime.segmentation import Predictor
from tests.runtime.interpolations import FUSES, ROUNDING
from tests.runtime.models import Formula, dataset, model, plans, stock_preprocess

TURNED = {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}


def image(channels: int = 1, shape: tuple[int, ...] = (14, 18, 11), empty: int = 3, seed: int = 0) -> np.ndarray:
    """Noise in a box of zeros, with a hole."""
    made = np.random.default_rng(seed).normal(60, 40, (channels, *shape)).astype(np.float32)
    made[:, :empty] = 0
    made[:, :, -empty:] = 0
    made[:, shape[0] // 2, shape[1] // 2, shape[2] // 2] = 0
    return made


@pytest.mark.parametrize("channels", [1, 2])
def test_crop(channels: int) -> None:
    generator = np.random.default_rng(0)
    sparse = [(generator.random((channels, *generator.integers(1, 9, 3))) < 0.6).astype(np.float32) for _ in range(200)]
    for made in (image(channels), np.zeros((channels, 4, 5, 6), np.float32), *sparse):
        mask, box = crop_to_nonzero(made)
        _, seg, expected = stock_crop(made)
        assert [[side.start, side.stop] for side in box] == expected
        assert np.array_equal(without_holes(mask), seg[0] == 0)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("turned", [{}, TURNED])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.25, 0.8, 1.0), (6.0, 1.0, 1.0)])
def test_arrays(scheme: str, masked: bool, turned: dict[str, Any], spacing: tuple[float, ...]) -> None:
    plan, name = plans(2, normalization_schemes=[scheme] * 2, use_mask_for_norm=[masked, False], **turned)
    made = np.abs(image(2)).clip(0, 255)
    data, grid = preprocess(model(plan, name, dataset(2)), made, spacing)
    expected, properties = stock_preprocess(plan, name, dataset(2), made, spacing)
    assert data.dtype == expected.dtype == np.float32
    assert np.array_equal(data, expected)
    assert grid.cropped == properties["shape_after_cropping_and_before_resampling"]
    assert grid.whole == properties["shape_before_cropping"]


@pytest.mark.parametrize("function", ["resample_torch_fornnunet", "no_resampling_hack"])
def test_other_functions(function: str) -> None:
    plan, name = plans(resampling_fn_data=function, resampling_fn_data_kwargs={})
    data, _ = preprocess(model(plan, name, dataset()), image(), (1.3, 0.7, 1.1))
    expected, _ = stock_preprocess(plan, name, dataset(), image(), (1.3, 0.7, 1.1))
    np.testing.assert_allclose(data, expected, rtol=3e-7, atol=5e-7)


def test_two_dimensions() -> None:
    plan, name = plans(dimensions=2)
    data, _ = preprocess(model(plan, name, dataset()), image(), (3.0, 0.7, 1.2))
    expected, _ = stock_preprocess(plan, name, dataset(), image(), (3.0, 0.7, 1.2))
    assert np.array_equal(data, expected)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.25, 0.8, 1.0), (6.0, 1.0, 1.0)])
def test_previous_stage(spacing: tuple[float, ...]) -> None:
    plan, name = plans(2, previous_stage="3d_lowres", use_mask_for_norm=[True, False], **TURNED)
    previous = (np.random.default_rng(1).random((14, 18, 11)) * 2.4).astype(int).astype(np.float32)
    data, _ = preprocess(model(plan, name, dataset(2)), image(2), spacing, previous)
    expected, _ = stock_preprocess(plan, name, dataset(2), image(2), spacing, previous)
    assert len(data) == 4
    assert np.array_equal(data, expected)


LABELS = {
    "labels": {},
    "regions": {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3},
        "regions_class_order": [1, 2, 3],
    },
    "ignore": {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}},
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("function", ["resample_data_or_seg_to_shape", "resample_torch_fornnunet"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.25, 0.8, 1.0), (6.0, 1.0, 1.0)])
def test_back_to_the_image(kind: str, function: str, spacing: tuple[float, ...]) -> None:
    data_json = dataset(**LABELS[kind])
    arguments = {"is_seg": False, "force_separate_z": None}
    if function == "resample_data_or_seg_to_shape":
        arguments |= {"order": 1, "order_z": 0}
    plan, name = plans(resampling_fn_probabilities=function, resampling_fn_probabilities_kwargs=arguments, **TURNED)
    used = model(plan, name, data_json)
    network = Formula(1, used.output_channels)
    data, grid = preprocess(used, image(), spacing)
    predictor = Predictor(used, network.numpy, Budget(None))
    logits = predictor.logits(data)
    _, properties = stock_preprocess(plan, name, data_json, image(), spacing)
    manager = PlansManager(plan)
    for keep in (False, True):
        expected = convert_predicted_logits_to_segmentation_with_correct_shape(
            torch.from_numpy(logits.copy()), manager, manager.get_configuration(name),
            manager.get_label_manager(data_json), properties, return_probabilities=keep,
        )  # fmt: skip
        found = predictor.finish(logits, grid, keep)
        segmentation = expected[0] if keep else expected
        assert found.segmentation.dtype == segmentation.dtype
        assert np.array_equal(found.segmentation, segmentation)
        assert len(np.unique(segmentation)) >= 3
        if keep:
            assert found.probabilities is not None
            np.testing.assert_allclose(found.probabilities, expected[1], rtol=0, atol=3e-7 if FUSES else ROUNDING)


def test_class_maps_on_the_disk_change_nothing() -> None:
    plan, name = plans()
    used = model(plan, name, dataset())
    network = Formula(1, 3)
    results = []
    for limit in (None, 1e-5):
        predictor = Predictor(used, network.numpy, Budget(limit))
        results.append(predictor.segment(image(), (1.2, 0.9, 1.0), probabilities=True))
    assert isinstance(predictor.budget.zeros((10, 10, 10), np.float32, 1 << 20), np.memmap)
    assert np.array_equal(results[0].segmentation, results[1].segmentation)
    assert np.array_equal(results[0].probabilities, results[1].probabilities)


SIDES = st.one_of(
    st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(60, 200), st.integers(1, 6), st.integers(1, 6)),
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=SIDES,
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    order=st.permutations([0, 1, 2]),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
    two_dimensional=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 9),
)
def test_random_images(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    order: list[int],
    dtype: type,
    two_dimensional: bool,
    masked: bool,
    seed: int,
) -> None:
    """Any shape, spacing, axis order and type: nnU-Net's segmentation, or a reason where nnU-Net fails."""
    plan, name = plans(
        dimensions=2 if two_dimensional else 3,
        transpose_forward=list(order),
        transpose_backward=[order.index(axis) for axis in range(3)],
        use_mask_for_norm=[masked],
    )
    data_json, generator = dataset(), np.random.default_rng(seed)
    made = (generator.random((1, *shape)) * 200 * (generator.random((1, *shape)) > 0.3)).astype(dtype)
    used = model(plan, name, data_json)
    network = Formula(1, 3, len(used.patch_size))
    manager = PlansManager(plan)
    try:
        expected, properties = stock_preprocess(plan, name, data_json, made, spacing)
        assert min(expected.shape) > 0
    except Exception:  # whatever nnU-Net and its libraries raise
        with pytest.raises(SegmentationError):
            preprocess(used, made, spacing)
        return
    predictor = Predictor(used, network.numpy, Budget(None))
    data, grid = preprocess(used, made, spacing)
    assert np.array_equal(data, expected)
    logits = predictor.logits(data)
    segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits.copy()), manager, manager.get_configuration(name),
        manager.get_label_manager(data_json), properties,
    )  # fmt: skip
    assert np.array_equal(predictor.finish(logits, grid).segmentation, segmentation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made[0], "three spacings"),
        (lambda made: np.concatenate([made, made]), "2 channels, but the model takes 1"),
        (lambda made: np.where(made > 100, np.nan, made), r"without a number"),
        (lambda made: made[:, :0], "empty"),
        (lambda made: made[:, 5:6, 5:6, 5:6], "too thin"),
    ],
)
def test_refused(change: Any, message: str) -> None:
    plan, name = plans()
    with pytest.raises(DataError, match=message):
        preprocess(model(plan, name, dataset()), change(image()), (0.3, 0.3, 0.3))
