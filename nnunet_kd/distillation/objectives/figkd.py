"""FiGKD: the fine detail of the logits."""

from __future__ import annotations

from typing import ClassVar, Literal

import pywt
import torch
from pydantic import Field, field_validator

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.losses.axis_operators import axis_level
from nnunet_kd.losses.wavelets import dwt


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
        if name is not None and name not in pywt.wavelist(kind="discrete"):
            raise ValueError(f"{name!r} is not a discrete wavelet of PyWavelets; try db4, haar or sym4")
        return name


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
        self._over_classes = settings.axis == "class"
        self._levels = settings.levels
        self._wavelet = settings.wavelet or ("haar" if self._over_classes else "db4")
        if self._over_classes:
            length = networks.heads + networks.heads % 2
            detail = axis_level(length, self._wavelet, "periodization").high[:, : networks.heads]
            self.register_buffer("_detail", torch.tensor(detail, dtype=torch.float32), persistent=False)

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per band."""
        assert step.teacher_logits is not None
        difference = step.student_logits - step.teacher_logits
        if step.targets.valid is not None:
            difference = difference.where(step.targets.valid, 0.0)
        if self._over_classes:
            matrix = self.get_buffer("_detail").to(difference.dtype)
            return {"detail": torch.einsum("dk,bk...->bd...", matrix, difference).abs().mean()}
        _, *details = dwt(difference, self._wavelet, self._levels, "periodization")
        terms = {}
        for place, bands in enumerate(details):
            assert isinstance(bands, dict)
            terms.update({f"level{self._levels - place}_{name}": band.abs().mean() for name, band in bands.items()})
        return terms
