"""Runtimes behind one small interface: a patch's voxels in, its logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.cores import usable_cores
from nnunet_kd_runtime.errors import MissingRequirement, ModelError, SettingsError
from nnunet_kd_runtime.extras import require

Patch = NDArray[np.float32]
DEVICES = ("cpu", "cuda")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Network(Protocol):
    """What a back end needs to know of an exported network."""

    @property
    def path(self) -> Path:
        """The ONNX file."""
        ...

    @property
    def input_name(self) -> str:
        """Of the image."""
        ...

    @property
    def output_name(self) -> str:
        """Of the logits."""
        ...

    @property
    def input_channels(self) -> int:
        """With those of a cascade's previous stage."""
        ...

    @property
    def output_channels(self) -> int:
        """Heads."""
        ...

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Voxels a side."""
        ...


class Backend(Protocol):
    """Runs a network on one batch."""

    def __call__(self, image: Patch) -> Patch:
        """Logits ``(B, heads, *patch)`` of ``image (B, channels, *patch)``; the result is the caller's to change."""
        ...


class OnnxRuntime:
    """ONNX Runtime on CPU or CUDA.

    Attributes:
        input_shape: ``(B, channels, *patch)``; ``None`` where the network leaves a size open.
    """

    def __init__(self, network: Network | Path, device: str = "cpu", threads: int | None = None) -> None:
        """Load the network.

        Args:
            network: exported; or any ONNX file, of which the first input and output are taken as they are.
            device: cpu or cuda.
            threads: for one network call; default: all cores.

        Raises:
            ModelError: the file cannot be loaded, takes something else than floating point images, or does not fit its
                description.
            MissingRequirement: onnxruntime, or its CUDA build, is not installed.
        """
        runtime = require("onnxruntime", "running the network")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 3  # a warning about devices it looks for is of no use to anyone
        available = runtime.get_available_providers()
        if _PROVIDERS.get(device) not in available:
            raise MissingRequirement(
                f"this onnxruntime has no support for --device {device}; it has {', '.join(available)}. "
                f"For CUDA: pip install onnxruntime-gpu."
            )
        path = network if isinstance(network, Path) else network.path
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[_PROVIDERS[device]])
        except Exception as error:  # its exceptions share no other base
            raise _unreadable(path, "ONNX Runtime", error) from error
        taken, given = self._session.get_inputs(), self._session.get_outputs()
        if isinstance(network, Path):
            image, logits = taken[0], given[0]
        else:
            image, logits = _named(path, taken, network.input_name), _named(path, given, network.output_name)
            _check_shape(network, image.shape, logits.shape)
        if image.type not in _INPUT_TYPES:
            raise ModelError(f"{path} takes {image.type}, and not floating point images. Export again.")
        self._path = path
        self._input, self._outputs, self._type = image.name, [logits.name], _INPUT_TYPES[image.type]
        self.input_shape = tuple(size if isinstance(size, int) else None for size in image.shape)

    def __call__(self, image: Patch) -> Patch:
        """See :class:`Backend`."""
        try:
            result = self._session.run(self._outputs, {self._input: image.astype(self._type, copy=False)})[0]
        except Exception as error:  # its exceptions share no other base
            raise _failed(self._path, "ONNX Runtime", error) from error
        logits: Patch = result.astype(np.float32, copy=False)
        return logits


class OpenVino:
    """OpenVINO on CPU, in float32 whatever the processor offers."""

    def __init__(self, network: Network, device: str = "cpu", threads: int | None = None) -> None:
        """Compile the network for its patch size.

        Args:
            network: exported.
            device: cpu.
            threads: for one network call; default: all cores.

        Raises:
            ModelError: the file cannot be loaded or does not fit its description.
            MissingRequirement: openvino is not installed.
            SettingsError: another device than cpu.
        """
        openvino = require("openvino", "the openvino backend")
        if device != "cpu":
            raise SettingsError(f"the openvino backend runs on --device cpu, not {device}.")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 otherwise on some processors: other segmentations
            "ENABLE_CPU_PINNING": False,  # a thread bound to one core waits for whatever else runs there
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            compiled = core.read_model(str(network.path))
            shapes = [_static(port.get_partial_shape()) for port in (compiled.input(0), compiled.output(0))]
        except Exception as error:  # its exceptions share no other base
            raise _unreadable(network.path, "OpenVINO", error) from error
        _check_shape(network, *shapes)
        # the sliding window calls with one patch at a time; a fixed shape lets OpenVINO choose its kernels beforehand
        compiled.reshape({0: [1, network.input_channels, *network.patch_size]})
        self._path = network.path
        self._request = core.compile_model(compiled, "CPU", settings).create_infer_request()

    def __call__(self, image: Patch) -> Patch:
        """See :class:`Backend`; a batch is run image by image."""
        try:
            results = [self._request.infer({0: one[None]}, share_inputs=True)[0] for one in image]
        except RuntimeError as error:
            raise _failed(self._path, "OpenVINO", error) from error
        return results[0] if len(results) == 1 else np.concatenate(results)


BACKENDS: dict[str, Callable[[Network, str, int | None], Backend]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
"""By name: called with the exported network, the device and the number of threads."""


def _static(shape: Any) -> list[int | None]:
    return [None if size.is_dynamic else size.get_length() for size in shape]


def _named(path: Path, ports: Sequence[Any], name: str) -> Any:
    for port in ports:
        if port.name == name:
            return port
    raise ModelError(
        f"{path} has {', '.join(port.name for port in ports)}, but its JSON says {name}: they are of different models. "
        f"Export again."
    )


def _check_shape(network: Network, taken: Sequence[Any], given: Sequence[Any]) -> None:
    expected = [network.input_channels, *network.patch_size]
    if list(taken[1:]) != expected:
        raise ModelError(
            f"{network.path} takes {list(taken[1:])} (channels, patch), but its JSON says {expected}: they are of different "
            f"models. Export again."
        )
    if isinstance(given[1], int) and given[1] != network.output_channels:
        raise ModelError(
            f"{network.path} gives {given[1]} channels, but its JSON says {network.output_channels}: they are of different "
            f"models. Export again."
        )


def _failed(path: Path, runtime: str, error: Exception) -> Exception:
    """What a network call that broke off means: memory was short, or the file is not what it seems."""
    reason = str(error).strip().split("\n")[0]
    if "alloc" in reason.lower():  # neither has an exception of its own for it
        return MemoryError(reason)
    return ModelError(
        f"{runtime} cannot run {path}: {reason} Update {runtime.replace(' ', '').lower()}, or export again."
    )


def _unreadable(path: Path, runtime: str, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0]
    return ModelError(
        f"{runtime} cannot load {path}: {reason} Update {runtime.replace(' ', '').lower()}, or export again."
    )
