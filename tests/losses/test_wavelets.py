"""The transform against PyWavelets and ptwt, and its algebra."""

from __future__ import annotations

import warnings

import numpy as np
import ptwt
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_kd.losses.axis_operators import MODES, is_orthonormal
from nnunet_kd.losses.band_projection import band_projection
from nnunet_kd.losses.wavelets import detail_projection, dwt, idwt

SHAPES = [(13, 9, 10), (16, 8, 24), (3, 5, 7), (2, 2, 2), (17, 20), (5, 4)]


def pywt_bands(x: torch.Tensor, wavelet: str, levels: int, mode: str) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pywt.wavedecn(x.numpy(), wavelet, mode=mode, level=levels, axes=tuple(range(2, x.ndim)))


def pywt_projection(x: torch.Tensor, wavelet: str, levels: int, mode: str, bands: str, level: int | None) -> np.ndarray:
    """The projection as the paper writes it: transform, zero, invert (Eq. 6)."""
    dims = x.ndim - 2
    approximation, *details = pywt_bands(x, wavelet, levels, mode)
    kept = [approximation if bands in ("A", "all") else np.zeros_like(approximation)]
    for index, level_bands in enumerate(details):
        this_level = levels - index
        kept.append({})
        for name, band in level_bands.items():
            family = "S" if name == "d" * dims else "D"
            keep = bands == "all" or (bands == family and level in (None, this_level))
            kept[-1][name] = band if keep else np.zeros_like(band)
    full = pywt.waverecn(kept, wavelet, mode=mode, axes=tuple(range(2, x.ndim)))
    return full[(..., *(slice(size) for size in x.shape[2:]))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("wavelet", "levels"), [("db4", 3), ("haar", 2), ("bior2.2", 1)])
def test_dwt_equals_pywavelets(shape: tuple[int, ...], mode: str, wavelet: str, levels: int) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    try:
        expected = pywt_bands(x, wavelet, levels, mode)
    except ValueError:
        with pytest.raises(ValueError, match="cannot transform an axis of 1 sample"):
            dwt(x, wavelet, levels, mode)
        return
    found = dwt(x, wavelet, levels, mode)
    np.testing.assert_allclose(found[0].numpy(), expected[0], atol=1e-10)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name].numpy(), theirs[name], atol=1e-10)
    np.testing.assert_allclose(
        idwt(found, wavelet, mode).numpy(),
        pywt.waverecn(expected, wavelet, mode=mode, axes=tuple(range(2, x.ndim))),
        atol=1e-10,
    )
    torch.testing.assert_close(idwt(found, wavelet, mode, shape), x, atol=1e-10, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(2, 19), min_size=2, max_size=3),
    wavelet=st.sampled_from(["haar", "db2", "db4", "sym5", "db8", "bior3.3"]),
    mode=st.sampled_from([mode for mode in MODES if mode != "reflect"]),
    levels=st.integers(1, 3),
    bands=st.sampled_from(["D", "S", "A", "all"]),
    data=st.data(),
)
def test_detail_projection_equals_pywavelets(shape, wavelet, mode, levels, bands, data) -> None:  # type: ignore[no-untyped-def]
    level = data.draw(st.sampled_from([None, *range(1, levels + 1)])) if bands in ("D", "S") else None
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    expected = pywt_projection(x, wavelet, levels, mode, bands, level)
    np.testing.assert_allclose(detail_projection(x, wavelet, levels, mode, bands, level).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("mode", ["zero", "constant", "symmetric", "periodic"])
def test_dwt_equals_ptwt_in_float32(mode: str) -> None:
    x = torch.randn(1, 4, 20, 28, 20)
    expected = ptwt.wavedec3(x, "db4", mode=mode, level=3)
    found = dwt(x, mode=mode)
    assert relative_error(found[0], expected[0]) < 1e-5
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        for name, band in theirs.items():
            assert relative_error(ours[name], band) < 1e-5


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value: float32 sums of eight taps cannot promise more of small entries."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(40, 56, 40), (13, 9, 11), (5, 7, 5), (3, 3, 3), (17, 4)])
def test_all_bands_reconstruct_in_float32(shape: tuple[int, ...], mode: str) -> None:
    x = torch.randn(1, 2, *shape)
    again = idwt(dwt(x, mode=mode), mode=mode, shape=shape)
    assert ((again - x).norm() / x.norm()).item() < 1e-5
    parts = sum(detail_projection(x, mode=mode, bands=bands) for bands in ("D", "S", "A"))
    assert ((parts - x).norm() / x.norm()).item() < 1e-5


def test_levels_add_up_to_all_details() -> None:
    x = torch.randn(1, 2, 16, 12, 9, dtype=torch.float64)
    for mode in ("periodization", "symmetric"):
        levels = sum(detail_projection(x, mode=mode, level=level) for level in (1, 2, 3))
        torch.testing.assert_close(levels, detail_projection(x, mode=mode), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["periodization", "symmetric"])
@pytest.mark.parametrize("shape", [(6, 5, 4), (7, 6)])
def test_gradients(shape: tuple[int, ...], mode: str) -> None:
    x = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: detail_projection(y, mode=mode, levels=2), x)
    assert torch.autograd.gradcheck(lambda y: idwt(dwt(y, mode=mode, levels=2), mode=mode, shape=shape), x)


def test_orthonormal_only_in_periodization_on_even_sizes() -> None:
    assert is_orthonormal((16, 8), "db4", 3, "periodization")
    assert not is_orthonormal((16, 12), "db4", 3, "periodization")
    assert not is_orthonormal((16, 8), "db4", 3, "symmetric")
    assert not is_orthonormal((16, 8), "bior2.2", 3, "periodization")
    x = torch.randn(1, 1, 16, 8, 24, dtype=torch.float64)
    approximation, *details = dwt(x)
    energy = approximation.square().sum() + sum(band.square().sum() for level in details for band in level.values())
    torch.testing.assert_close(energy, x.square().sum())


def test_projection_is_its_own_square_and_adjoint_where_orthonormal() -> None:
    x, y = torch.randn(2, 1, 1, 16, 8, 24, dtype=torch.float64)
    px, py = detail_projection(x), detail_projection(y)
    torch.testing.assert_close(detail_projection(px), px)
    torch.testing.assert_close((px * y).sum(), (x * py).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 8, 8, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detail_projection(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, detail_projection(x.float()))


def test_operators_are_built_once() -> None:
    x = torch.randn(1, 1, 14, 6, 10)
    detail_projection(x)
    before = band_projection.cache_info()
    for _ in range(3):
        detail_projection(x)
    after = band_projection.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 3)


def test_operators_first_built_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        detail_projection(torch.randn(1, 1, 22, 6, 10))
    x = torch.randn(1, 1, 22, 6, 10, requires_grad=True)
    detail_projection(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavelet": "db99"}, "not a discrete wavelet"),
        ({"mode": "wrap"}, "boundary mode 'wrap' is not one of"),
        ({"levels": 0}, "at least 1"),
        ({"bands": "LLL"}, "bands must be one of"),
        ({"level": 4}, "between 1 and 3"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detail_projection(torch.randn(1, 1, 8, 8, 8), **change)


def test_refuses_tensors_that_are_no_features() -> None:
    with pytest.raises(ValueError, match="expected"):
        dwt(torch.randn(8, 8, 8))
    with pytest.raises(ValueError, match="floating-point"):
        dwt(torch.ones(1, 1, 8, 8, dtype=torch.int64))
