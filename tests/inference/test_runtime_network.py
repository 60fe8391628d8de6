"""The runtime's back ends and window inside nnU-Net's predictor: which code runs, and whose errors come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")

from nnunet_kd.errors import DataError, ModelError
from nnunet_kd.inference.onnx_metadata import OnnxModel
from nnunet_kd.inference.predictor import CasePredictor
from nnunet_kd.inference.runtime_network import RuntimeNetwork, open_backend, open_file


def test_logits_beyond_float16_are_an_error_of_this_package() -> None:
    network = RuntimeNetwork(lambda batch: np.full((1, 2, 8, 8, 8), 1e6, np.float32))
    with pytest.raises(DataError, match="beyond float16"):
        network.predict(torch.zeros(1, 8, 8, 8), (8, 8, 8), 2, (), 0.5, lambda share: None)


def test_a_file_that_is_no_network_is_an_error_of_this_package(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        open_file(path, 1)
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        open_backend("onnxruntime", OnnxModel(path, {"onnx": {}}))


class Plan:
    """What the sliding window asks of plans and labels."""

    patch_size, num_segmentation_heads = (8, 8, 8), 2


def _triple(batch: np.ndarray) -> np.ndarray:
    """Two heads, other ones for mirrored images."""
    ramp = np.arange(8, dtype=np.float32)
    return np.concatenate([3 * batch, batch * ramp], axis=1)


class Triple(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_triple(image.numpy()))


@pytest.mark.parametrize("mirroring", [True, False])
@pytest.mark.parametrize("axes", [(0, 2), None])
def test_an_exported_network_takes_the_runtimes_window_with_nnunets_logits(
    mirroring: bool, axes: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 13, 8, 20)).astype(np.float32))
    predictor = CasePredictor(torch.device("cpu"), mirroring, 0.4)
    predictor.configuration_manager = predictor.label_manager = Plan()
    predictor.allowed_mirroring_axes = axes
    predictor.network = Triple()
    predictor.list_of_parameters = [{}]
    expected = predictor.predict_sliding_window_return_logits(image)
    shares: list[float] = []
    predictor.progress = shares.append
    predictor.network = RuntimeNetwork(_triple)

    def fail(*_: object) -> None:
        raise AssertionError("nnU-Net's window ran")

    monkeypatch.setattr(nnUNetPredictor, "predict_sliding_window_return_logits", fail)
    found = predictor.predict_sliding_window_return_logits(image)
    assert found.dtype == expected.dtype == torch.float16
    assert torch.equal(found, expected)
    assert sum(shares) == pytest.approx(1)
