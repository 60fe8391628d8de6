"""Back ends give one network's logits, and refuse with one line what they cannot do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnx", reason="needs the extra onnx")

import onnx

from nnunet_kd_runtime.backends import BACKENDS, OnnxRuntime
from nnunet_kd_runtime.errors import MissingRequirement, ModelError, SettingsError


@dataclass(frozen=True)
class Exported:
    """A network of two channels, two heads and 4x6 voxels."""

    path: Path
    input_name: str = "x"
    output_name: str = "y"
    input_channels: int = 2
    output_channels: int = 2
    patch_size: tuple[int, ...] = (4, 6)


def write(path: Path, element: int = onnx.TensorProto.FLOAT) -> Path:
    """``y = 2 x`` for images of two channels and 4x6 voxels."""
    x, y = (onnx.helper.make_tensor_value_info(name, element, ["batch", 2, 4, 6]) for name in "xy")
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param, reason=f"needs the extra that brings {request.param}")
    return str(request.param)


def test_a_batch_comes_out_image_by_image(backend: str, tmp_path: Path) -> None:
    network = BACKENDS[backend](Exported(write(tmp_path / "m.onnx")), "cpu", 1)
    images = np.random.default_rng(0).random((3, 2, 4, 6), dtype=np.float32)
    np.testing.assert_allclose(network(images), 2 * images)
    np.testing.assert_allclose(network(images[:1]), 2 * images[:1])


def test_the_result_is_the_callers_to_change(backend: str, tmp_path: Path) -> None:
    network = BACKENDS[backend](Exported(write(tmp_path / "m.onnx")), "cpu", 1)
    image = np.ones((1, 2, 4, 6), dtype=np.float32)
    first = network(image)
    first += 5
    np.testing.assert_array_equal(network(image), np.full_like(image, 2))
    np.testing.assert_array_equal(image, np.ones_like(image))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": (4, 8)}, r"takes \[2, 4, 6\] \(channels, patch\), but its JSON says \[2, 4, 8\]"),
        ({"input_channels": 3}, r"but its JSON says \[3, 4, 6\]"),
        ({"output_channels": 5}, "gives 2 channels, but its JSON says 5"),
    ],
)
def test_the_json_of_another_model_is_refused(
    backend: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        BACKENDS[backend](Exported(write(tmp_path / "m.onnx"), **changes), "cpu", 1)


def test_a_damaged_file_is_refused(backend: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ModelError, match=f"Update {backend}, or export again") as found:
        BACKENDS[backend](Exported(path), "cpu", 1)
    assert "\n" not in str(found.value)


def test_names_are_those_of_the_json(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="has x, but its JSON says image"):
        OnnxRuntime(Exported(path, input_name="image"))
    with pytest.raises(ModelError, match="has y, but its JSON says logits"):
        OnnxRuntime(Exported(path, output_name="logits"))


def test_half_precision_inputs_are_converted_and_others_refused(tmp_path: Path) -> None:
    half = OnnxRuntime(write(tmp_path / "half.onnx", onnx.TensorProto.FLOAT16), threads=1)
    assert half.input_shape == (None, 2, 4, 6)
    image = np.random.default_rng(0).random((1, 2, 4, 6), dtype=np.float32)
    found = half(image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, 2 * image.astype(np.float16))
    with pytest.raises(ModelError, match="not floating point"):
        OnnxRuntime(write(tmp_path / "integer.onnx", onnx.TensorProto.INT64))


def test_devices_are_named(tmp_path: Path) -> None:
    network = Exported(write(tmp_path / "m.onnx"))
    with pytest.raises(MissingRequirement, match="no support for --device mps"):
        OnnxRuntime(network, "mps")
    pytest.importorskip("openvino", reason="needs the extra openvino")
    with pytest.raises(SettingsError, match="runs on --device cpu, not cuda"):
        BACKENDS["openvino"](network, "cuda", None)


def test_openvino_computes_in_float32_for_one_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    given: list[dict[str, Any]] = []
    shapes: list[list[int]] = []

    class Core(openvino.Core):  # type: ignore[misc, name-defined]
        def compile_model(self, network: Any, device: str, settings: dict[str, Any]) -> Any:
            given.append(settings)
            shapes.append(list(network.input(0).get_shape()))
            return super().compile_model(network, device, settings)

    monkeypatch.setattr(openvino, "Core", Core)
    network = Exported(write(tmp_path / "m.onnx"))
    for threads in (None, 1):
        BACKENDS["openvino"](network, "cpu", threads)
    common = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    assert given == [common, {**common, "INFERENCE_NUM_THREADS": 1}]
    assert shapes == [[1, 2, 4, 6]] * 2


def test_backends_load_neither_pytorch_nor_nnunet() -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    code = (
        "import sys, onnxruntime, openvino, nnunet_kd_runtime.backends; "
        "print(sorted({'torch', 'nnunetv2', 'nnunet_kd.errors'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
