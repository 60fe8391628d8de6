"""A network as ONNX, written by PyTorch's exporter.

Operator set 18 is what PyTorch's exporter writes without conversion. U-Nets come out as Conv, ConvTranspose,
InstanceNormalization, LeakyRelu, Concat, Add and AveragePool, all with definitions of set 16 or older, which ONNX Runtime and
OpenVINO run and which TensorRT's support matrix lists (github.com/onnx/onnx-tensorrt, docs/operators.md; it asks that
normalization's scale and bias be stored in the file, as they are).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from nnunet_kd.errors import ModelError
from nnunet_kd.inference.onnx_metadata import INPUT, OUTPUT
from nnunet_kd.system.requirements import require

OPSET = 18
LARGEST_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, which ends at 2 GiB."""


class FoldAverage(nn.Module):
    """Mean logits of several folds' networks; what nnU-Net averages after the sliding window, which is linear."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, heads, *patch)``."""
        total: torch.Tensor = self.networks[0](image)
        for network in self.networks[1:]:
            total = total + network(image)
        return total / len(self.networks)


def write_network(network: nn.Module, channels: int, patch_size: Sequence[int], path: Path) -> None:
    """``image (batch, channels, *patch)`` to ``logits``, batch of any size; the patch is fixed.

    Raises:
        ModelError: PyTorch's exporter cannot express the network, or the file would be too large.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if size > LARGEST_BYTES:
        raise ModelError(
            f"the network has {size / 1e9:.1f} GB of weights, an ONNX file holds less than 2. Export one fold: -f 0."
        )
    image = torch.zeros(2, channels, *patch_size)  # of one, the exporter would conclude that it is always one
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (image,),
                str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ModelError(f"PyTorch cannot export this network to ONNX: {str(error).strip().splitlines()[0]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    _forget_origin(path)


def _forget_origin(path: Path) -> None:
    """Take out the exporter's notes, which hold source lines and folders of this machine."""
    onnx = require("onnx")
    network = onnx.load(str(path))
    graph = network.graph
    for part in (network, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save(network, str(path))
