"""The distillation objectives, by the name that settings use."""

from __future__ import annotations

from nnunet_kd.objectives.base import Objective
from nnunet_kd.objectives.cwd import CWD
from nnunet_kd.objectives.dcd import DCD
from nnunet_kd.objectives.fgbvd import FGBVD
from nnunet_kd.objectives.figkd import FiGKD
from nnunet_kd.objectives.fitnet import FitNet
from nnunet_kd.objectives.fopro import FoPro
from nnunet_kd.objectives.freekd import FreeKD
from nnunet_kd.objectives.ifvd import IFVD
from nnunet_kd.objectives.logits import Logits

OBJECTIVES: dict[str, type[Objective]] = {
    "dcd": DCD,
    "fgbvd": FGBVD,
    "fopro": FoPro,
    "figkd": FiGKD,
    "logits": Logits,
    "fitnet": FitNet,
    "cwd": CWD,
    "ifvd": IFVD,
    "freekd": FreeKD,
}
