"""Another runtime in the place of nnU-Net's network."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_kd.backends.interface import Backend, DeviceNotInstalled, DeviceUnknown, NetworkError, OtherShape
from nnunet_kd.backends.onnx_runtime import OnnxRuntime
from nnunet_kd.backends.open_vino import OpenVino
from nnunet_kd.errors import MissingRequirement, ModelError, SettingsError
from nnunet_kd.inference.onnx_metadata import OnnxModel
from nnunet_kd.system.requirements import require

RUNTIMES: dict[str, tuple[str, type[OnnxRuntime] | type[OpenVino]]] = {
    "onnxruntime": ("ONNX Runtime", OnnxRuntime),
    "openvino": ("OpenVINO", OpenVino),
}
"""By module: name and backend."""


def open_backend(name: str, model: OnnxModel, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load an exported network into one of :data:`RUNTIMES`.

    Args:
        name: the runtime's module.
        model: the exported network.
        device: cpu, or cuda with ONNX Runtime.
        threads: for one network call; default: all cores.

    Raises:
        ModelError: the file cannot be loaded or does not fit its description.
        MissingRequirement: the runtime, or its support for the device, is not installed.
        SettingsError: the runtime is not made for the device.
    """
    require(name)
    title, backend = RUNTIMES[name]
    expected = (model.input_channels, *model.patch_size)
    try:
        return backend(model.path, device, threads, expected)
    except DeviceNotInstalled as error:
        raise MissingRequirement(str(error)) from error
    except DeviceUnknown as error:
        raise SettingsError(str(error)) from error
    except NetworkError as error:
        raise ModelError(f"{title} cannot load {model.path}: {error} Update {name}, or export again.") from error
    except OtherShape as error:
        raise ModelError(
            f"{model.path} takes {list(error.shape)} (channels, patch), but its JSON says {list(expected)}: they are of "
            f"different models. Export again."
        ) from error


class RuntimeNetwork(nn.Module):
    """A backend as a module: tensors in and out, no weights to load."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits on the image's device."""
        return torch.from_numpy(self._backend(image.cpu().numpy())).to(image.device)
