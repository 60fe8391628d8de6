"""FGBVD-KD: bias and variance learned from low and high frequencies."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from nnunet_kd.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.objectives.fourier import back_to_space, butterworth, half_spectrum
from nnunet_kd.objectives.projection import stage_projections


class FGBVDSettings(ObjectiveSettings):
    """The paper's text gives no values; all are ours (docs/methods.md)."""

    weight: float = Field(0.05, ge=0, description="factor of the objective in the total loss")
    alpha: float = Field(0.5, ge=0, le=1, description="share of the bias that counts whatever the variance")
    beta: float = Field(1.0, ge=0, description="factor of the variance")
    cutoff: float = Field(0.25, gt=0, le=1, description="of the low-pass, in units of the Nyquist frequency")
    order: int = Field(4, ge=1, description="of the low-pass (Butterworth)")
    dropped: float = Field(0.5, ge=0, lt=1, description="lambda: share of frequencies hidden from the expectation")
    divergence: Literal["mse", "kl"] = Field("mse", description="kl: of the softmax over channels at every voxel")


class ExpectationGenerator(nn.Module):
    """The light network of FFEE: 1x1x1, depthwise 3x3x3, ReLU, 1x1x1 convolutions, ``Ct`` channels in and out.

    Between them are as many channels as the student has (ours: the paper says light).
    """

    def __init__(self, channels: int, hidden: int, dimensions: int) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.reduce = convolution(channels, hidden, 1)
        self.mix = convolution(hidden, hidden, 3, padding=1, groups=hidden)
        self.expand = convolution(hidden, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, Ct, *spatial)`` to the same shape."""
        expected: torch.Tensor = self.expand(functional.relu(self.mix(self.reduce(features))))
        return expected


def split_bands(features: torch.Tensor, cutoff: float, order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """FID: ``(low, high)`` of ``(B, C, *spatial)``; they sum to the features."""
    shape = tuple(features.shape[2:])
    spectrum = half_spectrum(features)
    low = back_to_space(spectrum.mul_(butterworth(shape, cutoff, order, features.device, features.dtype)), shape)
    return low, features - low


class FGBVD(Objective):
    """``sum_i mean(a b + (1 - a) b exp(-v)) + beta mean(v)`` over encoder stages (FGBVD-KD; our reading).

    ``E`` estimates the student's expected prediction: from ``phi(S)`` with a random share of frequencies set to zero (FFEE).
    Bias ``b`` is the divergence of ``E`` from the teacher's low band, variance ``v`` that of ``phi(S) - E`` from its high
    band (FID). The same frequencies are hidden in all channels of an image (ours).
    Terms: ``stage0_bias``, ``stage0_variance``, ...
    """

    Settings: ClassVar[type[ObjectiveSettings]] = FGBVDSettings

    def __init__(self, settings: FGBVDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.settings = settings
        self.projections = stage_projections(networks)
        self.generators = nn.ModuleList(
            ExpectationGenerator(teacher, student, networks.dimensions)
            for student, teacher in zip(networks.student_channels, networks.teacher_channels, strict=True)
        )

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """Two scalars per stage."""
        random = step.generator("fgbvd")
        terms = {}
        stages = zip(step.student_features, step.teacher_features, self.projections, self.generators, strict=True)
        for index, (student, teacher, projection, generator) in enumerate(stages):
            student = student.to(torch.promote_types(student.dtype, torch.float32))
            low, high = split_bands(teacher.to(student.dtype), self.settings.cutoff, self.settings.order)
            expected = generator(projection(self._with_frequencies_hidden(student, random)))
            bias = self._divergence(low, expected)
            variance = self._divergence(high, projection(student) - expected)
            certain = self.settings.alpha + (1 - self.settings.alpha) * torch.exp(-variance)
            terms[f"stage{index}_bias"] = (bias * certain).mean()
            terms[f"stage{index}_variance"] = self.settings.beta * variance.mean()
        return terms

    def _with_frequencies_hidden(self, student: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        spectrum = half_spectrum(student)
        kept = torch.rand((len(student), 1, *spectrum.shape[2:]), generator=random) >= self.settings.dropped
        return back_to_space(spectrum * kept.to(student.device), tuple(student.shape[2:]))

    def _divergence(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """Per voxel and channel (mse), or per voxel (kl)."""
        if self.settings.divergence == "mse":
            return (student - teacher).square()
        log_teacher = functional.log_softmax(teacher, dim=1)
        return (log_teacher.exp() * (log_teacher - functional.log_softmax(student, dim=1))).sum(1, keepdim=True)
