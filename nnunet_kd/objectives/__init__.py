"""The distillation objectives, by the name that settings use."""

from __future__ import annotations

from nnunet_kd.objectives.base import Objective
from nnunet_kd.objectives.dcd import DCD

OBJECTIVES: dict[str, type[Objective]] = {
    "dcd": DCD,
}
