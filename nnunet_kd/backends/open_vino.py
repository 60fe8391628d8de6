"""OpenVINO on CPU, in float32 whatever the processor offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.backends.interface import DeviceUnknown, NetworkError, OtherShape, Patch, first_line


class OpenVino:
    """A network of one input and one output, compiled for one size."""

    def __init__(self, path: Path, device: str, threads: int | None, image_shape: tuple[int, ...]) -> None:
        """Compile the network.

        Args:
            path: the ONNX file.
            device: cpu.
            threads: for one network call; ``None``: all cores.
            image_shape: ``(channels, *patch)`` of every image.

        Raises:
            ImportError: openvino is not installed.
            DeviceUnknown: another device than cpu.
            NetworkError: the file cannot be loaded.
            OtherShape: it does not take ``image_shape``.
        """
        import openvino

        if device != "cpu":
            raise DeviceUnknown(f"the openvino backend runs on -device cpu, not {device}.")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 otherwise on some processors: other segmentations
            "ENABLE_CPU_PINNING": False,  # a thread bound to one core waits for whatever else runs there
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            network = core.read_model(str(path))
            sizes = network.input(0).get_partial_shape()
            shape = tuple(None if size.is_dynamic else size.get_length() for size in sizes)
        except Exception as error:  # its exceptions share no other base
            raise NetworkError(first_line(error)) from error
        if shape[1:] != image_shape:
            raise OtherShape(shape[1:])
        # nnU-Net's predictor calls with one patch at a time; a fixed shape lets OpenVINO choose its kernels beforehand
        network.reshape({0: [1, *image_shape]})
        self._request = core.compile_model(network, "CPU", settings).create_infer_request()

    def __call__(self, image: Patch) -> Patch:
        """See :class:`~nnunet_kd.backends.interface.Backend`; a batch is run image by image."""
        results = [self._request.infer({0: one[None]}, share_inputs=True)[0] for one in image]
        return results[0] if len(results) == 1 else np.concatenate(results)
