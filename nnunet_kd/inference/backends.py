"""Runtimes behind one small interface: a patch's voxels in, its logits out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnunet_kd.errors import MissingRequirement, ModelError, SettingsError
from nnunet_kd.inference.onnx_metadata import INPUT, OUTPUT, OnnxModel
from nnunet_kd.system.requirements import require

Patch = NDArray[np.float32]


class Backend(Protocol):
    """Runs a network on one batch."""

    def __call__(self, image: Patch) -> Patch:
        """Logits ``(B, heads, *patch)`` of ``image (B, channels, *patch)``; the result is the caller's to change."""
        ...


class OnnxRuntime:
    """ONNX Runtime on CPU or CUDA."""

    def __init__(self, model: OnnxModel, device: str = "cpu", threads: int | None = None) -> None:
        """Load the network.

        Args:
            model: the exported network.
            device: cpu or cuda.
            threads: for one network call; default: all cores.

        Raises:
            ModelError: the file cannot be loaded or does not fit its description.
            MissingRequirement: onnxruntime, or its CUDA build, is not installed.
        """
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = 3  # a warning about devices it looks for is of no use to anyone
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device)
        if provider not in runtime.get_available_providers():
            raise MissingRequirement(
                f"this onnxruntime has no support for -device {device}; it has "
                f"{', '.join(runtime.get_available_providers())}. For CUDA: pip install onnxruntime-gpu."
            )
        try:
            self._session = runtime.InferenceSession(str(model.path), options, providers=[provider])
        except Exception as error:  # its exceptions share no other base
            raise _unreadable(model, "ONNX Runtime", error) from error
        _check_shape(model, self._session.get_inputs()[0].shape)

    def __call__(self, image: Patch) -> Patch:
        """See :class:`Backend`."""
        result: Patch = self._session.run([OUTPUT], {INPUT: image})[0]
        return result


class OpenVino:
    """OpenVINO on CPU, in float32 whatever the processor offers."""

    def __init__(self, model: OnnxModel, device: str = "cpu", threads: int | None = None) -> None:
        """Compile the network for its patch size.

        Args:
            model: the exported network.
            device: cpu.
            threads: for one network call; default: all cores.

        Raises:
            ModelError: the file cannot be loaded or does not fit its description.
            MissingRequirement: openvino is not installed.
            SettingsError: another device than cpu.
        """
        openvino = require("openvino")
        if device != "cpu":
            raise SettingsError(f"the openvino backend runs on -device cpu, not {device}.")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 otherwise on some processors: other segmentations
            "ENABLE_CPU_PINNING": False,  # a thread bound to one core waits for whatever else runs there
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            network = core.read_model(str(model.path))
            shape = [None if size.is_dynamic else size.get_length() for size in network.input(0).get_partial_shape()]
        except Exception as error:  # its exceptions share no other base
            raise _unreadable(model, "OpenVINO", error) from error
        _check_shape(model, shape)
        # nnU-Net's predictor calls with one patch at a time; a fixed shape lets OpenVINO choose its kernels beforehand
        network.reshape({0: [1, model.input_channels, *model.patch_size]})
        self._request = core.compile_model(network, "CPU", settings).create_infer_request()

    def __call__(self, image: Patch) -> Patch:
        """See :class:`Backend`; a batch is run image by image."""
        results = [self._request.infer({0: one[None]}, share_inputs=True)[0] for one in image]
        return results[0] if len(results) == 1 else np.concatenate(results)


BACKENDS: dict[str, Callable[[OnnxModel, str, int | None], Backend]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
"""By name: called with the exported network, the device and the number of threads."""


class RuntimeNetwork(nn.Module):
    """A backend in the place of nnU-Net's network: tensors in and out, no weights to load."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits on the image's device."""
        return torch.from_numpy(self._backend(image.cpu().numpy())).to(image.device)


def _check_shape(model: OnnxModel, shape: list[Any]) -> None:
    expected = [model.input_channels, *model.patch_size]
    if list(shape[1:]) != expected:
        raise ModelError(
            f"{model.path} takes {shape[1:]} (channels, patch), but its JSON says {expected}: they are of different models. "
            f"Export again."
        )


def _unreadable(model: OnnxModel, runtime: str, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0]
    return ModelError(
        f"{runtime} cannot load {model.path}: {reason} Update {runtime.replace(' ', '').lower()}, or export again."
    )
