"""Runtimes give one network's logits, and say in exceptions of their own what they cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_kd.backends.interface import DeviceNotInstalled, DeviceUnknown, NetworkError, OtherShape
from nnunet_kd.backends.onnx_runtime import OnnxRuntime
from nnunet_kd.backends.open_vino import OpenVino

onnx = pytest.importorskip("onnx")


def write(path: Path, element: int = onnx.TensorProto.FLOAT) -> Path:
    """``y = 2 x`` for images of two channels and 4x6 voxels."""
    x, y = (onnx.helper.make_tensor_value_info(name, element, ["batch", 2, 4, 6]) for name in "xy")
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("runtime", [OnnxRuntime, OpenVino])
def test_a_batch_comes_out_image_by_image(runtime: type, tmp_path: Path) -> None:
    backend = runtime(write(tmp_path / "m.onnx"), "cpu", 1, (2, 4, 6))
    images = np.random.default_rng(0).random((3, 2, 4, 6), dtype=np.float32)
    np.testing.assert_allclose(backend(images), 2 * images)
    np.testing.assert_allclose(backend(images[:1]), 2 * images[:1])


@pytest.mark.parametrize("runtime", [OnnxRuntime, OpenVino])
def test_another_shape_and_a_damaged_file_are_refused(runtime: type, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    with pytest.raises(OtherShape) as found:
        runtime(path, "cpu", 1, (2, 4, 8))
    assert found.value.shape == (2, 4, 6)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(NetworkError):
        runtime(path, "cpu", 1, (2, 4, 6))


def test_half_precision_inputs_are_converted_and_others_refused(tmp_path: Path) -> None:
    half = OnnxRuntime(write(tmp_path / "half.onnx", onnx.TensorProto.FLOAT16), threads=1)
    assert half.input_shape == (None, 2, 4, 6)
    image = np.ones((1, 2, 4, 6), dtype=np.float32)
    np.testing.assert_array_equal(half(image), 2 * image.astype(np.float16))
    with pytest.raises(NetworkError, match="not floating point"):
        OnnxRuntime(write(tmp_path / "integer.onnx", onnx.TensorProto.INT64))


def test_devices_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    with pytest.raises(DeviceNotInstalled, match="no support for -device mps"):
        OnnxRuntime(path, "mps")
    with pytest.raises(DeviceUnknown, match="runs on -device cpu"):
        OpenVino(path, "cuda", None, (2, 4, 6))


def test_backends_load_neither_pytorch_nor_nnunet() -> None:
    code = (
        "import sys, nnunet_kd.backends.onnx_runtime, nnunet_kd.backends.open_vino; "
        "print(sorted({'torch', 'nnunetv2', 'nnunet_kd.errors'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
