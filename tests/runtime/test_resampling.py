"""Every resampling function gives nnU-Net's numbers: SciPy's to the last bit, PyTorch's to one rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape as stock_default
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack as stock_none
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet as stock_torch
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_simple as stock_simple

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.errors import DataError, ModelError
from nnunet_kd_runtime.interpolation import interpolate
from nnunet_kd_runtime.resampling import Resampling, resample_torch_simple
from nnunet_kd_runtime.separate_axis import separate_axis
from tests.runtime.interpolations import ROUNDING

SPACINGS = [
    ((1.0, 1.0, 1.0), (1.3, 0.8, 1.1)),
    ((5.0, 1.0, 1.0), (4.0, 0.8, 1.1)),  # separate first axis
    ((1.0, 5.0, 1.2), (1.3, 4.0, 1.1)),  # separate second axis
    ((1.0, 0.9, 5.0), (1.3, 0.8, 5.0)),  # separate third axis, its size kept
    ((1.0, 1.0, 1.0), (1.0, 1.1, 6.0)),  # separate because of the new spacing
    ((0.24, 1.25, 1.25), (1.0, 1.0, 1.0)),  # two longest axes: none of them alone
    ((999.0, 1.0, 1.0), (999.0, 1.5, 0.7)),  # 2D
]


def volume(dtype: type, shape: tuple[int, ...] = (2, 9, 12, 11)) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 3).astype(dtype)


def blobs(shape: tuple[int, ...] = (1, 9, 12, 11), labels: int = 4) -> np.ndarray:
    coarse = np.random.default_rng(1).integers(0, labels, (1, 4, 4, 4))
    zoomed = coarse.repeat(3, 1).repeat(3, 2).repeat(3, 3)
    return zoomed[:, : shape[1], : shape[2], : shape[3]].astype(np.float32)


def new_shape(shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...]) -> list[int]:
    return [round(size * a / b) for size, a, b in zip(shape[1:], old, new, strict=True)]


@pytest.mark.parametrize("force", [None, True, False])
@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_separate_axis(old: tuple[float, ...], new: tuple[float, ...], force: bool | None) -> None:
    for threshold in (3, 1.05, 10):
        separate, axis = determine_do_sep_z_and_axis(force, old, new, threshold)
        assert separate_axis(force, old, new, threshold) == (axis if separate else None)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("order", "order_z"), [(3, 0), (1, 0), (0, 0), (3, 1), (1, 3), (5, 2)])
@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_splines_to_the_last_bit(
    old: tuple[float, ...], new: tuple[float, ...], order: int, order_z: int, dtype: type
) -> None:
    array = volume(dtype)
    shape = new_shape(array.shape, old, new)
    arguments: dict[str, Any] = {"is_seg": False, "order": order, "order_z": order_z, "force_separate_z": None}
    expected = stock_default(array, shape, old, new, **arguments)
    found = Resampling("resample_data_or_seg_to_shape", arguments)(array, shape, old, new)
    assert found.dtype == expected.dtype == dtype
    assert np.array_equal(found, expected)
    assert not np.array_equal(shape, array.shape[1:])


@pytest.mark.parametrize(("order", "order_z"), [(1, 0), (0, 0), (3, 0), (1, 1)])
@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_labels_to_the_last_bit(old: tuple[float, ...], new: tuple[float, ...], order: int, order_z: int) -> None:
    array = blobs()
    shape = new_shape(array.shape, old, new)
    arguments: dict[str, Any] = {"is_seg": True, "order": order, "order_z": order_z, "force_separate_z": None}
    expected = stock_default(array, shape, old, new, **arguments)
    assert np.array_equal(Resampling("resample_data_or_seg_to_shape", arguments)(array, shape, old, new), expected)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_labels_at_ties(factor: float) -> None:
    """Even factors put samples in the middle between two labels."""
    array = blobs((1, 8, 8, 8), 6)
    shape = [int(size * factor) for size in array.shape[1:]]
    arguments: dict[str, Any] = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": False}
    spacing = (1.0, 1.0, 1.0)
    expected = stock_default(array, shape, spacing, spacing, **arguments)
    assert np.array_equal(
        Resampling("resample_data_or_seg_to_shape", arguments)(array, shape, spacing, spacing), expected
    )


@pytest.mark.parametrize("mode", ["linear", "nearest", "nearest-exact"])
@pytest.mark.parametrize("axis_mode", ["nearest-exact", "nearest", "linear"])
@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_torch_to_one_rounding(old: tuple[float, ...], new: tuple[float, ...], mode: str, axis_mode: str) -> None:
    for dtype in (np.float32, np.float16):
        array = volume(dtype)
        shape = new_shape(array.shape, old, new)
        arguments = {"is_seg": False, "mode": mode, "aniso_axis_mode": axis_mode, "num_threads": 1}
        expected = stock_torch(torch.from_numpy(array), shape, old, new, **arguments).numpy()
        found = Resampling("resample_torch_fornnunet", arguments)(array, shape, old, new)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=ROUNDING)


@pytest.mark.parametrize("economical", [True, False])
@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_torch_labels(old: tuple[float, ...], new: tuple[float, ...], economical: bool) -> None:
    array = blobs()
    shape = new_shape(array.shape, old, new)
    arguments = {"is_seg": True, "memefficient_seg_resampling": economical}
    expected = stock_torch(array, shape, old, new, **arguments)
    found = Resampling("resample_torch_fornnunet", arguments)(array, shape, old, new)
    assert found.dtype == expected.dtype
    assert np.mean(found != expected) <= 1e-3  # ties of float16 scores


@pytest.mark.parametrize("mode", ["linear", "nearest", "nearest-exact"])
@pytest.mark.parametrize("spatial", [2, 3])
def test_torch_simple(mode: str, spatial: int) -> None:
    array = volume(np.float32, (10, 9, 12, 11)[: spatial + 1])
    for shape in ((14, 7, 25)[:spatial], (90, 60, 5)[:spatial], (9, 12, 11)[:spatial]):
        expected = stock_simple(array, shape, mode=mode, num_threads=1)
        np.testing.assert_allclose(resample_torch_simple(array, shape, mode=mode), expected, rtol=2e-7, atol=ROUNDING)


def test_nearest_positions_of_every_size() -> None:
    for size in range(1, 201, 7):
        row = np.arange(size, dtype=np.float32)[None, None]
        for other in range(1, 201):
            for mode in ("nearest", "nearest-exact"):
                expected = torch.nn.functional.interpolate(torch.from_numpy(row), (other,), mode=mode)[0]
                assert np.array_equal(interpolate(row[0], (other,), mode), expected.numpy()), (size, other, mode)


def test_no_resampling() -> None:
    array = volume(np.float32)
    same = Resampling("no_resampling_hack", {})(array, [1, 2, 3], (1, 1, 1), (2, 2, 2))
    assert np.array_equal(same, stock_none(array, [1, 2, 3], (1, 1, 1), (2, 2, 2)))


def test_torch_simple_from_a_plan_fails_in_nnunet_and_here() -> None:
    """nnU-Net hands spacings to the arguments that follow the shape."""
    array, spacing = volume(np.float32), [1.0, 1.0, 1.0]
    with pytest.raises(RuntimeError, match="expects an int"):
        stock_simple(array, [4, 4, 4], spacing, spacing)
    with pytest.raises(TypeError):
        stock_simple(array, array.shape[1:], spacing, spacing, is_seg=False)
    function = Resampling("resample_torch_simple", {})
    assert function(array, array.shape[1:], spacing, spacing) is array
    for resampling, shape in (
        (function, [4, 4, 4]),
        (Resampling("resample_torch_simple", {"is_seg": False}), [9, 12, 11]),
    ):
        with pytest.raises(DataError, match="nnU-Net cannot resample with resample_torch_simple"):
            resampling(array, shape, spacing, spacing)


def test_others_are_refused_by_name() -> None:
    for resampling, message in (
        (Resampling("my_resampling", {}), "my_resampling"),
        (Resampling("no_resampling_hack", {"order": 1}), "argument order"),
        (Resampling("resample_torch_fornnunet", {"mode": "bicubic"}), "bicubic"),
    ):
        with pytest.raises(ModelError, match=message):
            resampling.check("data")
