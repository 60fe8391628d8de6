"""Optional requirements: imported where they are used, with an error that says which extra brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from nnunet_kd.errors import MissingRequirement

EXTRAS = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "nnunet_kd_runtime": "onnx",
    "openvino": "openvino",
}
"""Module: the extra of this package that installs it."""
_FROM_SOURCE = {"nnunet_kd_runtime": ", from a clone after: pip install ./runtime"}
"""Module: what to do first where its distribution is not on a package index."""


def require(module: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: its name, possibly of a submodule (``onnxruntime.quantization``).

    Raises:
        MissingRequirement: it is not installed; names the extra.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS[top]
        raise MissingRequirement(
            f"{top} cannot be imported ({error}). Install it with: pip install 'nnunet-kd[{extra}]'{_FROM_SOURCE.get(top, '')}"
        ) from error
