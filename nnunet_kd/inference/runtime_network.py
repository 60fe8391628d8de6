"""nnunet-kd-runtime's back ends and sliding window for nnU-Net's predictor: one implementation for both programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nnunet_kd.errors import DataError, MissingRequirement, ModelError, NnunetKdError, SettingsError
from nnunet_kd.inference.onnx_metadata import OnnxModel
from nnunet_kd.system.requirements import require

if TYPE_CHECKING:  # it is optional
    from nnunet_kd_runtime.backends import Backend, OnnxRuntime


def open_backend(name: str, model: OnnxModel, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load an exported network.

    Args:
        name: the back end's module: onnxruntime or openvino.
        model: the exported network.
        device: cpu, or cuda with ONNX Runtime.
        threads: for one network call; default: all cores.

    Raises:
        ModelError: the file cannot be loaded or does not fit its description.
        MissingRequirement: the extra that brings the back end is not installed, or its support for the device.
        SettingsError: the back end does not run on the device.
    """
    require(name)
    backends = require("nnunet_kd_runtime.backends")
    with _own_errors():
        backend: Backend = backends.BACKENDS[name](model, device, threads)
    return backend


def open_file(path: Path, threads: int) -> OnnxRuntime:
    """Load any ONNX file of one input and one output into ONNX Runtime, on the CPU.

    Raises:
        ModelError: it cannot be loaded, or takes something else than floating point images.
        MissingRequirement: the extra ``onnx`` is not installed.
    """
    require("onnxruntime")
    backends = require("nnunet_kd_runtime.backends")
    with _own_errors():
        backend: OnnxRuntime = backends.OnnxRuntime(path, threads=threads)
    return backend


class RuntimeNetwork(nn.Module):
    """A back end as a module: tensors in and out, no weights to load."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits on the image's device."""
        return torch.from_numpy(self._backend(image.cpu().numpy())).to(image.device)

    def predict(
        self,
        image: torch.Tensor,
        patch_size: Sequence[int],
        heads: int,
        mirror_axes: Sequence[int],
        step: float,
        progress: Callable[[float], None],
    ) -> torch.Tensor:
        """Logits of a preprocessed image, patch by patch.

        Args:
            image: ``(channels, *spatial)`` float32.
            patch_size: voxels a side.
            heads: channels of the network's output.
            mirror_axes: of the patch, to average over; empty: none.
            step: distance of patches as a share of the patch.
            progress: told the share of the image (0 to 1) predicted since it was last told.

        Returns:
            ``(heads, *spatial)`` float16 on the CPU.

        Raises:
            DataError: a logit is beyond float16, where nnU-Net stops, too.
        """
        windows = require("nnunet_kd_runtime.windows")
        with _own_errors():
            logits = windows.predict_logits(
                self._backend, image.cpu().numpy(), patch_size, heads, mirror_axes, step, progress
            )
        return torch.from_numpy(np.ascontiguousarray(logits))


@contextmanager
def _own_errors() -> Iterator[None]:
    """The runtime's errors as those of this package that have the same name, which the command line prints."""
    theirs = require("nnunet_kd_runtime.errors")
    ours: tuple[type[NnunetKdError], ...] = (SettingsError, MissingRequirement, DataError, ModelError)
    try:
        yield
    except theirs.SegmentationError as error:
        own = next((kind for kind in ours if isinstance(error, getattr(theirs, kind.__name__))), NnunetKdError)
        raise own(str(error)) from error
