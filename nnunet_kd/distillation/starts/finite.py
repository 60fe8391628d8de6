"""Which weights are no numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from nnunet_kd.errors import TeacherError
from nnunet_kd.system.counts import some

_NAMED = 3


def not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Names of the tensors that hold NaN or infinity, for a message: the first three of them; empty if all are finite."""
    broken = [name for name, weight in weights if not weight.isfinite().all()]
    return some(broken, _NAMED)


def check_teacher(teacher: nn.Module) -> None:
    """Raise a TeacherError if a teacher's weights are not finite."""
    if broken := not_finite(teacher.named_parameters()):
        raise TeacherError(
            f"the teacher holds weights that are not finite ({broken}), so nothing can be inherited from it. Its training "
            f"diverged: take another checkpoint or teacher."
        )
