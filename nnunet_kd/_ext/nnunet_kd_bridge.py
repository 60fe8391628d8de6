"""The only file in the folder that nnU-Net searches for external trainers.

nnU-Net imports each file here and asks ``hasattr(module, trainer_name)``. Trainers are imported only when their own name is
asked for, so that a look-up of another trainer neither pays for ours nor fails with them. nnU-Net removes modules of this
folder from ``sys.modules`` afterwards; the trainer classes live in :mod:`nnunet_kd.trainers`, where pickling finds them.
"""

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    module = f"nnunet_kd.trainers.{name}"
    if name.startswith("nnUNetTrainer") and importlib.util.find_spec(module) is not None:
        return getattr(importlib.import_module(module), name)
    raise AttributeError(name)
