"""FGBVD-KD: bias and variance learned from low and high frequencies."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.projection import ProjectingSettings, each, stage_projections
from nnunet_kd.losses.fgbvd import BiasAndVariance, ExpectationGenerator


class FGBVDSettings(ProjectingSettings):
    """The paper's text gives no values; all are ours (docs/reference-methods.md)."""

    weight: float = Field(0.05, ge=0, description="factor of the objective in the total loss")
    alpha: float = Field(0.5, ge=0, le=1, description="share of the bias that counts whatever the variance")
    beta: float = Field(1.0, ge=0, description="factor of the variance")
    cutoff: float = Field(0.25, gt=0, le=1, description="of the low-pass, in units of the Nyquist frequency")
    order: int = Field(4, ge=1, description="of the low-pass (Butterworth)")
    dropped: float = Field(0.5, ge=0, lt=1, description="lambda: share of frequencies hidden from the expectation")
    divergence: Literal["mse", "kl"] = Field("mse", description="kl: of the softmax over channels at every voxel")


class FGBVD(Objective):
    """``sum_i mean(a b + (1 - a) b exp(-v)) + beta mean(v)`` over encoder stages (FGBVD-KD; our reading).

    ``E`` estimates the student's expected prediction: from ``phi(S)`` with a random share of frequencies set to zero (FFEE).
    Bias ``b`` is the divergence of ``E`` from the teacher's low band, variance ``v`` that of ``phi(S) - E`` from its high
    band (FID). The same frequencies are hidden in all channels of an image, and ``exp(-v)`` weighs the bias without a gradient
    of its own (ours).
    Terms: ``stage0_bias``, ``stage0_variance``, ...
    """

    Settings: ClassVar[type[ProjectingSettings]] = FGBVDSettings

    def __init__(self, settings: FGBVDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.loss = BiasAndVariance(
            alpha=settings.alpha,
            beta=settings.beta,
            cutoff=settings.cutoff,
            order=settings.order,
            dropped=settings.dropped,
            divergence=settings.divergence,
        )
        self.projections = stage_projections(networks)
        self.generators = nn.ModuleList(
            ExpectationGenerator(teacher, student, networks.dimensions)
            for student, teacher in zip(networks.student_channels, networks.teacher_channels, strict=True)
        )

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """Two scalars per stage."""
        random = step.generator("fgbvd")
        terms = {}
        stages = zip(step.student_features, step.teacher_features, self.generators, each(self.projections), strict=True)
        for index, (student, teacher, generator, projection) in enumerate(stages):
            assert isinstance(generator, ExpectationGenerator)
            bias, variance = self.loss.compare(student, teacher, generator, projection, random)
            terms[f"stage{index}_bias"] = bias
            terms[f"stage{index}_variance"] = self.loss.beta * variance
        return terms
