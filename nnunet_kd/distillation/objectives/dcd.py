"""Detail Consistent Distillation (DCD), the package's main method."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.projection import ProjectingSettings, each, stage_projections
from nnunet_kd.losses.axis_operators import check_wavelet
from nnunet_kd.losses.band_projection import Bands
from nnunet_kd.losses.dcd import DCDLoss
from nnunet_kd.losses.wavelets import detail_projection


class DCDSettings(ProjectingSettings):
    """Defaults are the paper's; where it is silent, ours (docs/reference-methods.md)."""

    weight: float = Field(0.05, ge=0, description="mu of Eq. 8")
    wavelet: str = Field("db4", description="any discrete wavelet of PyWavelets")
    levels: int = Field(3, ge=1, description="levels of the transform")
    mode: Literal["periodization", "zero", "constant", "symmetric", "reflect", "periodic"] = Field(
        "periodization", description="boundary handling; the paper is silent, this is our choice"
    )
    bands: Bands = Field("D", description="bands to align; D is the method, S, A and all its ablation (Table 4)")
    idwt: bool = Field(True, description="false: mean square over the kept coefficients (Table 4, w/o IDWT)")
    per_level: bool = Field(False, description="average of one loss per level instead of one over all levels' bands")
    stages: Literal["sum", "mean"] = Field("sum", description="how stage losses add up; the paper sums")
    projection: Literal["learned", "fixed"] = Field(
        "learned", description="fixed: phi stays as it starts, fitted or random (`projection_start`)"
    )

    @field_validator("wavelet")
    @classmethod
    def _known_wavelet(cls, name: str) -> str:
        return check_wavelet(name)

    @model_validator(mode="after")
    def _levels_have_bands(self) -> DCDSettings:
        if self.per_level and self.bands not in ("D", "S"):
            raise ValueError("per_level needs bands that exist at every level: D or S")
        return self


class DCD(Objective):
    """``sum_i mean((P_D(T_i) - P_D(phi_i(S_i)))^2)`` over encoder stages ``i`` (DCD paper, Eq. 6 to 8).

    Terms: ``stage0`` (finest), ``stage1``, ... With ``stages: mean`` each is divided by the number of stages.
    """

    Settings: ClassVar[type[ProjectingSettings]] = DCDSettings

    def __init__(self, settings: DCDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.settings = settings
        self.projections = stage_projections(networks, learned=settings.projection == "learned")
        self.loss = DCDLoss(
            wavelet=settings.wavelet,
            levels=settings.levels,
            mode=settings.mode,
            bands=settings.bands,
            per_level=settings.per_level,
            inverse=settings.idwt,
        )

    def compared(self, features: torch.Tensor) -> list[torch.Tensor]:
        """``P_D`` of the features, or, with ``per_level``, one per level."""
        chosen = self.settings
        levels = range(1, chosen.levels + 1) if chosen.per_level else [None]
        return [
            detail_projection(features, chosen.wavelet, chosen.levels, chosen.mode, chosen.bands, level)
            for level in levels
        ]

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per stage; see the class."""
        share = 1.0 / len(self.projections) if self.settings.stages == "mean" else 1.0
        stages = zip(step.student_features, step.teacher_features, each(self.projections), strict=True)
        return {f"stage{index}": share * self.loss.compare(*stage) for index, stage in enumerate(stages)}
