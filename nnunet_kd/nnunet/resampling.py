"""nnU-Net's functions that resample images, which plans name."""

from __future__ import annotations

import inspect
from typing import Any

from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name


def resampling_defaults(name: str) -> dict[str, Any] | None:
    """The arguments of a resampling function that have defaults; ``None`` if nnU-Net has no such function."""
    try:
        function = recursive_find_resampling_fn_by_name(name)
    except RuntimeError:
        return None
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
