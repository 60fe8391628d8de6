"""Requirements that are imported where they are used, with an error that says how to install those that are optional."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from nnunet_kd.errors import MissingRequirement

REQUIRED = {
    "nnunetv2": "nnunetv2",
    "torch": "torch",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "pywt": "PyWavelets",
    "ptwt": "ptwt",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "numpy": "numpy",
}
"""Module: the package that installs it. Imported by commands when they run, so that those which need none of it work without."""
RUNTIME = "nnunet_kd_runtime"
EXTRAS = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    RUNTIME: "onnx",
    "openvino": "openvino",
    "submitit": "slurm",
}
"""Module: the extra of this package that installs it."""
_WITH_RUNTIME = ("onnx", "openvino")
"""Extras that need nnunet-kd-runtime, which no package index has."""


def require(module: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: its name, possibly of a submodule (``onnxruntime.quantization``).

    Raises:
        MissingRequirement: it is not installed; says how to install what it comes with.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingRequirement(f"{top} cannot be imported ({error}). {how_to_install(EXTRAS[top])}") from error


def how_to_install(extra: str) -> str:
    """A sentence with the command that installs an extra of this package.

    pip knows the extras of an installed package without an index. It does not find nnunet-kd-runtime, so where that is missing it
    comes first, from a clone.
    """
    command = f"pip install 'nnunet-kd[{extra}]'"
    if extra in _WITH_RUNTIME and importlib.util.find_spec(RUNTIME) is None:
        return f"Install it, in a clone of nnunet-kd, with: pip install ./runtime && {command}"
    return f"Install it with: {command}"
