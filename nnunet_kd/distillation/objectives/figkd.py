"""FiGKD: the fine detail of the logits."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.losses.axis_operators import check_wavelet
from nnunet_kd.losses.figkd import FiGKDLoss


class FiGKDSettings(ObjectiveSettings):
    """Everything but the idea is ours: the paper classifies images."""

    weight: float = Field(1.0, ge=0, description="factor of the objective in the total loss")
    axis: Literal["space", "class"] = Field(
        "space", description="space: transform the logit maps; class: every voxel's class vector, as the paper does"
    )
    wavelet: str | None = Field(None, description="default: db4 over space, haar over classes")
    levels: int = Field(1, ge=1, description="levels of the transform over space; over classes there is one")

    @field_validator("wavelet")
    @classmethod
    def _known_wavelet(cls, name: str | None) -> str | None:
        return None if name is None else check_wavelet(name)

    @property
    def compares_stages(self) -> bool:
        """Logits alone are compared."""
        return False


class FiGKD(Objective):
    """``sum over bands of mean |W_b(z_s) - W_b(z_t)|``, all bands but the approximation (FiGKD paper).

    The transform is linear, so that one transform of the difference of the logits is enough; where voxels are ignored the
    difference is zero. Over space the boundary mode is periodization, in which a constant added to the logits changes no
    detail. Over classes the vector is padded with zeros to an even length, as in the paper's setting.
    Terms: one per band, named by level and PyWavelets' letters, as ``level1_aad``; over classes ``detail``.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = FiGKDSettings
    needs_teacher_features = False
    needs_teacher_logits = True

    def __init__(self, settings: FiGKDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.loss = FiGKDLoss(settings.axis, settings.wavelet, settings.levels)

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per band."""
        assert step.teacher_logits is not None
        return self.loss.terms(step.student_logits, step.teacher_logits, step.targets.valid)
