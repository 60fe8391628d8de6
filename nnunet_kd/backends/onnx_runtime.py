"""ONNX Runtime on CPU or CUDA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nnunet_kd.backends.interface import DeviceNotInstalled, NetworkError, OtherShape, Patch, first_line

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntime:
    """A network of one input and one output.

    Attributes:
        input_shape: ``(B, channels, *patch)``; ``None`` where the network leaves a size open.
    """

    def __init__(
        self, path: Path, device: str = "cpu", threads: int | None = None, image_shape: tuple[int, ...] | None = None
    ) -> None:
        """Load the network.

        Args:
            path: the ONNX file.
            device: cpu or cuda.
            threads: for one network call; default: all cores.
            image_shape: ``(channels, *patch)`` that it must take; ``None``: any.

        Raises:
            ImportError: onnxruntime is not installed.
            DeviceNotInstalled: this onnxruntime does not run on the device.
            NetworkError: the file cannot be loaded, or takes something else than floating point images.
            OtherShape: it does not take ``image_shape``.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = 3  # a warning about devices it looks for is of no use to anyone
        available = onnxruntime.get_available_providers()
        if _PROVIDERS.get(device) not in available:
            raise DeviceNotInstalled(
                f"this onnxruntime has no support for -device {device}; it has {', '.join(available)}. "
                f"For CUDA: pip install onnxruntime-gpu."
            )
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[_PROVIDERS[device]])
        except Exception as error:  # its exceptions share no other base
            raise NetworkError(first_line(error)) from error
        given = self._session.get_inputs()[0]
        if given.type not in _INPUT_TYPES:
            raise NetworkError(f"it takes {given.type}, and not floating point images")
        self._input, self._type = given.name, _INPUT_TYPES[given.type]
        self.input_shape = tuple(size if isinstance(size, int) else None for size in given.shape)
        if image_shape is not None and self.input_shape[1:] != image_shape:
            raise OtherShape(self.input_shape[1:])

    def __call__(self, image: Patch) -> Patch:
        """See :class:`~nnunet_kd.backends.interface.Backend`."""
        result: Patch = self._session.run(None, {self._input: image.astype(self._type, copy=False)})[0]
        return result
