"""FGBVD-KD: bias and variance learned from low and high frequencies."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.projection import (
    ChannelProjection,
    ProjectingSettings,
    stage_projections,
)
from nnunet_kd.losses.blocks import block_bytes
from nnunet_kd.losses.fourier import back_to_space, butterworth, half_spectrum


class FGBVDSettings(ProjectingSettings):
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

    def hidden(self, features: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        """All but the last convolution, of ``projection (Ct, Cs)`` applied to ``features (B, Cs, *spatial)``.

        Returns:
            ``(B, hidden, *spatial)``.
        """
        reduced = _pointwise(self.reduce, features.flatten(2), after=projection)
        return functional.relu(self.mix(reduced.unflatten(2, features.shape[2:])))

    def expected(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last convolution, of voxels ``(B, hidden, voxels)``, to ``(B, Ct, voxels)``."""
        return _pointwise(self.expand, hidden)


def _pointwise(
    convolution: nn.Conv2d | nn.Conv3d, voxels: torch.Tensor, after: torch.Tensor | None = None
) -> torch.Tensor:
    """A 1x1(x1) convolution of ``(B, C, voxels)``, ``after`` a matrix: multiplied with it, so that nothing is between."""
    assert convolution.bias is not None
    matrix = convolution.weight.flatten(1)
    return torch.matmul(matrix if after is None else matrix @ after, voxels) + convolution.bias[:, None]


def low_band(features: torch.Tensor, cutoff: float, order: int) -> torch.Tensor:
    """FID's low frequencies of ``(B, C, *spatial)``, without gradient; what is missing to the features are the high ones."""
    shape = tuple(features.shape[2:])
    gain = butterworth(shape, cutoff, order, features.device, features.dtype)
    low = torch.empty_like(features, memory_format=torch.contiguous_format)
    block = max(1, block_bytes(features.device) // (features[:, 0].numel() * features.element_size()))
    with torch.no_grad():
        for some, of_features in zip(low.split(block, 1), features.split(block, 1), strict=True):
            some.copy_(back_to_space(half_spectrum(of_features).mul_(gain), shape))
    return low


class FGBVD(Objective):
    """``sum_i mean(a b + (1 - a) b exp(-v)) + beta mean(v)`` over encoder stages (FGBVD-KD; our reading).

    ``E`` estimates the student's expected prediction: from ``phi(S)`` with a random share of frequencies set to zero (FFEE).
    Bias ``b`` is the divergence of ``E`` from the teacher's low band, variance ``v`` that of ``phi(S) - E`` from its high
    band (FID). The same frequencies are hidden in all channels of an image (ours).
    Terms: ``stage0_bias``, ``stage0_variance``, ...
    """

    Settings: ClassVar[type[ProjectingSettings]] = FGBVDSettings

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
            assert isinstance(projection, ChannelProjection)
            assert isinstance(generator, ExpectationGenerator)
            student = student.to(torch.promote_types(student.dtype, torch.float32))
            teacher = teacher.to(student.dtype)
            hidden = generator.hidden(self._with_frequencies_hidden(student, random), projection.weight)
            bias, variance = self._compare(teacher, student, hidden, projection, generator)
            terms[f"stage{index}_bias"] = bias
            terms[f"stage{index}_variance"] = self.settings.beta * variance
        return terms

    def _compare(
        self,
        teacher: torch.Tensor,
        student: torch.Tensor,
        hidden: torch.Tensor,
        projection: ChannelProjection,
        generator: ExpectationGenerator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of bias and variance, voxels in blocks: maps with the teacher's channels are made again for backward."""
        low = low_band(teacher, self.settings.cutoff, self.settings.order)
        block = max(1, block_bytes(teacher.device) // (teacher.shape[:2].numel() * teacher.element_size()))
        sums = torch.zeros(2, dtype=student.dtype, device=student.device)
        # split, because a slice's gradient would be as large as the whole
        for of_teacher, of_low, *of_student in zip(
            *(one.flatten(2).split(block, 2) for one in (teacher, low, student, hidden)), strict=True
        ):
            # bound, because arguments are saved for backward, which a teacher's features (inference tensors) cannot be
            block_sums = partial(self._block_sums, projection, generator, of_teacher, of_low)
            sums = sums + checkpoint(block_sums, *of_student, use_reentrant=False, preserve_rng_state=False)
        maps = teacher.numel() if self.settings.divergence == "mse" else teacher[:, 0].numel()
        bias, variance = sums / maps
        return bias, variance

    def _block_sums(
        self,
        projection: ChannelProjection,
        generator: ExpectationGenerator,
        teacher: torch.Tensor,
        low: torch.Tensor,
        student: torch.Tensor,
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        """Sums of bias and variance over voxels of ``(B, channels, voxels)``."""
        expected = generator.expected(hidden)
        bias = self._divergence(low, expected)
        variance = self._divergence(teacher - low, projection(student) - expected)
        certain = self.settings.alpha + (1 - self.settings.alpha) * torch.exp(-variance)
        return torch.stack([(bias * certain).sum(), variance.sum()])

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
