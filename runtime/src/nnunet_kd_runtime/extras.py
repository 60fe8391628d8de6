"""Optional requirements: imported where they are used, with an error that says which extra brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from nnunet_kd_runtime.errors import MissingRequirement

EXTRAS = {"SimpleITK": "itk", "imageio": "images", "PIL": "images", "tifffile": "images", "openvino": "openvino"}
"""Module: the extra of this package that installs it."""


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: its name, possibly of a submodule (``imageio.v3``).
        purpose: what needs it, for the message.

    Raises:
        MissingRequirement: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        extra = EXTRAS.get(top)
        package = f"nnunet-kd-runtime[{extra}]" if extra else top
        raise MissingRequirement(
            f"{purpose} needs {top} ({error}). Install it with: pip install '{package}'"
        ) from error
