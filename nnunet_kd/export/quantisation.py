"""Half precision, and static 8-bit quantisation, by ONNX Runtime's own tools."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_kd.inference.onnx_metadata import INPUT
from nnunet_kd.system.requirements import require

CALIBRATION_PATCHES = 32


def to_float16(source: Path, target: Path) -> None:
    """Weights and arithmetic in half precision; input and output stay float32.

    Raises:
        MissingRequirement: the extra ``onnx`` is not installed.
    """
    onnx = require("onnx")
    converted = require("onnxruntime.transformers.float16").convert_float_to_float16(
        onnx.load(str(source)), keep_io_types=True
    )
    graph = require("onnxruntime.transformers.onnx_model").OnnxModel(converted)
    graph.topological_sort()  # the casts come last otherwise, which the standard forbids
    onnx.save(graph.model, str(target))


def to_int8(source: Path, target: Path, patches: Iterable[NDArray[np.float32]]) -> None:
    """Convolutions in 8 bit (weights per channel, unsigned activations, QDQ form), ranges measured on ``patches``.

    Instance normalization stays in float32: its statistics are computed from the activations themselves.

    Raises:
        MissingRequirement: the extra ``onnx`` is not installed.
    """
    quantization = require("onnxruntime.quantization")
    remaining = iter(patches)

    def next_patch(_: object) -> dict[str, NDArray[np.float32]] | None:
        patch = next(remaining, None)
        return None if patch is None else {INPUT: patch}

    reader = type("PatchReader", (quantization.CalibrationDataReader,), {"get_next": next_patch})()
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to pre-process, which the exporter has done
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantization.quantize_static(
                str(source),
                str(target),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
    finally:
        logging.root.setLevel(level)
