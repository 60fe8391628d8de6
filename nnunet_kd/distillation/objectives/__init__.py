"""The distillation objectives, by the name that settings use."""

from __future__ import annotations

from importlib import import_module

from nnunet_kd.distillation.objectives.base import Objective

_CLASSES = {
    "dcd": "DCD",
    "fgbvd": "FGBVD",
    "fopro": "FoPro",
    "figkd": "FiGKD",
    "logits": "Logits",
    "fitnet": "FitNet",
    "cwd": "CWD",
    "ifvd": "IFVD",
    "freekd": "FreeKD",
    "soft": "Soft",
}
"""Name of the objective's module in this folder, which is also its name in settings, and of its class."""

OBJECTIVES: dict[str, type[Objective]] = {
    name: getattr(import_module(f"{__name__}.{name}"), class_name) for name, class_name in _CLASSES.items()
}
