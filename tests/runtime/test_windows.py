"""Windows, weights, mirroring and float16 sums are nnU-Net's to the last bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import nn

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd_runtime.errors import DataError
from nnunet_kd_runtime.windows import gaussian_weights, pad_to, predict_logits, window_starts


@pytest.mark.parametrize(
    "size", [(40, 56, 40), (10, 96, 96), (16, 12, 16), (128, 128), (7, 33, 5), (192, 160), (1, 8, 8)]
)
def test_gaussian(size: tuple[int, ...]) -> None:
    expected = compute_gaussian(size, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu"))
    assert np.array_equal(gaussian_weights(size).view(np.uint16), expected.numpy().view(np.uint16))


def test_starts() -> None:
    for size, side, step in itertools.product(range(5, 201, 3), (5, 16, 40), (0.5, 0.3, 1.0)):
        if size >= side:
            expected = compute_steps_for_sliding_window((size,), (side,), step)
            assert window_starts((size,), (side,), step) == expected, (size, side, step)


@pytest.mark.parametrize("patch", [(16, 12, 9), (16, 12)])
@pytest.mark.parametrize("shape", [(3, 20, 5, 9), (3, 7, 11, 30)])
def test_padding(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected, slicer = pad_nd_image(torch.from_numpy(image), patch, "constant", {"value": 0}, True)
    padded, inner = pad_to(image, patch)
    assert np.array_equal(padded, expected.numpy())
    assert np.array_equal(padded[(slice(None), *inner)], expected[slicer].numpy())


class Sharp(nn.Module):
    """A network whose logits reach far, so that float16 rounds them."""

    def __init__(self, dimensions: int, heads: int) -> None:
        super().__init__()
        self.layer = (nn.Conv3d if dimensions == 3 else nn.Conv2d)(2, heads, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image).mul_(30)


class Stub:
    """What nnU-Net's sliding window asks of plans and labels."""

    def __init__(self, patch: tuple[int, ...], heads: int) -> None:
        self.patch_size, self.num_segmentation_heads = patch, heads


@pytest.mark.parametrize("mirror", [(), (0,), (0, 1)])
@pytest.mark.parametrize(
    ("patch", "shape"), [((8, 12, 9), (13, 25, 9)), ((8, 12, 9), (5, 12, 31)), ((8, 12), (4, 13, 20))]
)
@pytest.mark.parametrize("step", [0.5, 0.9])
def test_logits(patch: tuple[int, ...], shape: tuple[int, ...], mirror: tuple[int, ...], step: float) -> None:
    heads, network = 3, Sharp(len(patch), 3).eval()
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    stock = nnUNetPredictor(
        tile_step_size=step, use_mirroring=bool(mirror), device=torch.device("cpu"), allow_tqdm=False
    )
    stock.network, stock.allowed_mirroring_axes = network, mirror or None
    stock.configuration_manager = stock.label_manager = Stub(patch, heads)
    expected = stock.predict_sliding_window_return_logits(torch.from_numpy(image)).numpy()

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()

    found = predict_logits(run, image, patch, heads, mirror, step)
    assert found.dtype == np.float16
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))


def test_infinite_logits_are_refused_where_nnunet_stops() -> None:
    image = np.ones((1, 8, 8, 8), np.float32)
    with pytest.raises(DataError, match="beyond float16"):
        predict_logits(lambda batch: np.full((1, 2, 8, 8, 8), 1e6, np.float32), image, (8, 8, 8), 2)
