"""An ONNX file as a network, run by onnxruntime, with what can be read of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.errors import ModelError
from nnunet_kd.inference.runtime_network import RuntimeNetwork, open_file
from nnunet_kd.system.requirements import require


class OnnxNetwork(RuntimeNetwork):
    """Runs on the CPU, on as many threads as PyTorch; ``(B, C, *patch)`` to ``(B, classes, *patch)``.

    Attributes:
        parameters_count: number of learned values.
        input_channels: C.
        patch_size: voxels; the graph's, or, where that leaves it open, ``patch_size`` of the JSON beside the file.
        mirror_axes: ``mirror_axes`` of that JSON, else all spatial axes, from 0.
        file_bytes: of the file and of the weights it keeps in files of their own.

    Raises:
        MissingRequirement: the extra ``onnx`` is not installed.
        ModelError: no ONNX file that onnxruntime runs, or its patch is not known or not that of the JSON.
    """

    def __init__(self, path: Path) -> None:
        onnx, _ = require("onnx"), require("onnxruntime")
        try:
            graph = onnx.load(str(path), load_external_data=False).graph
        except Exception as error:  # protobuf's exceptions have no common base
            raise ModelError(f"{path} is no ONNX file that onnxruntime runs: {error}. Export it again.") from error
        try:
            backend = open_file(path, torch.get_num_threads())  # the same share of the machine as PyTorch gets
        except ModelError as error:
            raise ModelError(f"{path} is no ONNX file that onnxruntime runs. {error}") from error
        super().__init__(backend)
        beside = _read_beside(path)
        self.input_channels, self.patch_size = _input_shape(path, backend.input_shape, beside)
        self.mirror_axes = tuple(beside.get("mirror_axes", range(len(self.patch_size))) or ())
        self.parameters_count = _count_parameters(graph, onnx.TensorProto)
        self.file_bytes = sum(
            file.stat().st_size for file in {path, *(path.parent / name for name in _external_files(graph))}
        )


def _read_beside(path: Path) -> dict[str, Any]:
    """``model.json`` of ``model.onnx``; empty if there is none."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no keys and values")
    except ValueError as error:
        raise ModelError(f"{beside} cannot be read: {error}. Export {path.name} again.") from error
    return content


def _input_shape(path: Path, shape: tuple[int | None, ...], beside: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Channels and patch of a graph's input (B, C, *patch), in which ``None`` stands for an open number."""
    if len(shape) not in (4, 5) or shape[1] is None:
        raise ModelError(f"{path} takes {list(shape)}, but an image (batch, channels, 2 or 3 spatial axes) is needed.")
    told = tuple(int(size) for size in beside.get("patch_size", ()))
    fixed = shape[2:]
    if told and (len(told) != len(fixed) or any(f not in (None, t) for f, t in zip(fixed, told, strict=True))):
        raise ModelError(
            f"{path} takes {list(shape)}, but {path.with_suffix('.json').name} tells a patch of {list(told)}: they are of "
            f"different models. Put the JSON that was written with the model beside it."
        )
    patch = tuple(size for size in told or fixed if size is not None)
    if len(patch) != len(fixed):
        raise ModelError(
            f"{path} takes {list(shape)}, so its patch is not known. Put its JSON with `patch_size` beside it, "
            f"{path.with_suffix('.json').name}."
        )
    return shape[1], patch


def _count_parameters(graph: Any, kinds: Any) -> int:
    """Floating point weights, and quantised ones without their scales and zero points."""
    scaling = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {name for node in scaling for name in node.input[1:]}
    quantised = {node.input[0] for node in scaling}
    floating = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE)
    return sum(
        math.prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in scales and (tensor.data_type in floating or tensor.name in quantised)
    )


def _external_files(graph: Any) -> set[str]:
    return {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
