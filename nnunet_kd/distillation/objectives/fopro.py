"""FoPro-KD: the teacher sees the image through Fourier prompts."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.projection import ProjectingSettings, stage_projections
from nnunet_kd.losses.fourier import back_to_space, frequencies, half_spectrum
from nnunet_kd.losses.self_trained import SelfTrained


class FoProSettings(ProjectingSettings):
    """The papers' values are for 2D classification; all are ours (docs/reference-methods.md)."""

    weight: float = Field(0.05, ge=0, description="lambda_f, factor of EKD in the student's loss")
    explore_every: int = Field(
        5,
        ge=1,
        description="k: one exploration step in every so many iterations in which the objective counts (`every`)",
    )
    gamma: float = Field(0.1, ge=0, description="how strongly exploration seeks what the student does not follow")
    mu: float = Field(1.0, ge=0, description="how strongly exploration keeps the teacher's reading of the image")
    learning_rate: float = Field(1e-3, gt=0, description="of the prompt generator (Adam)")
    latent: int = Field(64, ge=1, description="length of the latent vector z")
    grid: int = Field(8, ge=2, description="gains per axis, from frequency zero to Nyquist")
    max_gain: float = Field(2.0, gt=1, description="gains stay between 1 / max_gain and max_gain")

    @property
    def periods(self) -> tuple[int, ...]:
        """Of the loss, and of exploration."""
        return self.every, self.every * self.explore_every


class FourierPromptGenerator(nn.Module):
    """FPG: a positive gain per channel and frequency from a latent vector; gain 1 everywhere at the start.

    Gains live on a coarse grid over absolute frequency, which makes them symmetric, so that the prompted image is real and
    every phase is kept. They are ``max_gain ** tanh(.)`` (ours).
    """

    def __init__(self, latent: int, channels: int, dimensions: int, grid: int, max_gain: float) -> None:
        super().__init__()
        self._grid = (channels, *[grid] * dimensions)
        self._log_bound = math.log(max_gain)
        self.layers = nn.Sequential(
            nn.Linear(latent, 2 * latent), nn.LeakyReLU(), nn.Linear(2 * latent, math.prod(self._grid))
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def log_gains(self, latents: torch.Tensor) -> torch.Tensor:
        """``(B, latent)`` to ``(B, C, grid, ...)``."""
        return (self._log_bound * torch.tanh(self.layers(latents))).view(-1, *self._grid)

    def forward(self, image: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The prompted image ``irfftn(g(z) * rfftn(x))``, of ``image``'s shape ``(B, C, *spatial)``."""
        shape = tuple(image.shape[2:])
        gains = self.log_gains(latents)
        for axis, frequency in enumerate(frequencies(shape, image.device, image.dtype), start=2):
            gains = _interpolate(gains, frequency, axis)
        return back_to_space(half_spectrum(image) * gains.exp(), shape)


def _interpolate(gains: torch.Tensor, frequency: torch.Tensor, axis: int) -> torch.Tensor:
    """Linear interpolation along ``axis`` of a grid over [0, 1] at the given frequencies."""
    place = frequency * (gains.shape[axis] - 1)
    below = place.floor().long().clamp(max=gains.shape[axis] - 2)
    share = (place - below).view([-1 if other == axis else 1 for other in range(gains.ndim)])
    return gains.index_select(axis, below) * (1 - share) + gains.index_select(axis, below + 1) * share


class FoPro(Objective):
    """EKD: ``sum_i || norm(phi_i(S_i(x))) - norm(T_i(x')) ||^2``, with ``x'`` the prompted image (FoPro-KD).

    ``norm`` divides by the length over channels; squared lengths are averaged over voxels, so a stage's term lies between
    0 and 4. The prompts are explored in every ``explore_every``-th of its iterations (AKD): the generator goes up
    ``gamma L_ekd`` and down ``mu (L_seg(T(x'), y) + distance of stage statistics)``. nnU-Net has no batch norm, so the means and
    standard deviations of the teacher's stages on ``x`` stand in for its running statistics (ours). Exploration runs in float32
    (ours).

    Terms: ``stage0`` (finest), ... Logged by exploration: ``challenge`` (L_ekd), ``reading`` (L_seg), ``statistics``, and
    ``diversity``, the root mean square distance of log gains between latents, which falls to zero if the prompts collapse.
    """

    Settings: ClassVar[type[ProjectingSettings]] = FoProSettings
    reads_labels: ClassVar[bool] = True
    needs_teacher_features = False
    explores = True

    def __init__(self, settings: FoProSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.settings = settings
        self.projections = stage_projections(networks)
        generator = FourierPromptGenerator(
            settings.latent, networks.image_channels, networks.dimensions, settings.grid, settings.max_gain
        )
        self.prompts = SelfTrained(generator, settings.learning_rate)

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per stage; no gradient reaches the prompts."""
        image = step.image.float()
        with torch.no_grad():
            prompted = self.prompts(image, self._latents(step, "fopro"))
        assert step.teacher is not None
        return self._agreement(step.student_features, step.teacher.features(prompted))

    def explore(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One step of the generator's own, in every ``explore_every``-th of the iterations in which the objective counts."""
        if step.iteration // self.settings.every % self.settings.explore_every:
            return {}
        image, teacher = step.image.float(), step.teacher
        assert teacher is not None
        latents = self._latents(step, "fopro exploration")
        with torch.no_grad():
            original = [_statistics(stage) for stage in teacher.encode_with_gradient(image)]
        log: dict[str, torch.Tensor] = {}

        def loss() -> torch.Tensor:
            stages = teacher.encode_with_gradient(self.prompts(image, latents))
            challenge = torch.stack(list(self._agreement(step.student_features, stages).values())).sum()
            reading = step.task_loss(teacher.decode_with_gradient(stages))
            pairs = zip(stages, original, strict=True)
            statistics = torch.stack([(_statistics(stage) - before).square().mean() for stage, before in pairs]).sum()
            log.update(challenge=challenge, reading=reading, statistics=statistics)
            return self.settings.mu * (reading + statistics) - self.settings.gamma * challenge

        self.prompts.minimise(loss)
        log["diversity"] = self._diversity(image)
        return {name: value.detach() for name, value in log.items()}

    def _agreement(self, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        stages = zip(self.projections, student, teacher, strict=True)
        return {
            f"stage{index}": (normalised(projection(own)) - normalised(other)).square().sum(1).mean()
            for index, (projection, own, other) in enumerate(stages)
        }

    def _latents(self, step: StepOutputs, purpose: str) -> torch.Tensor:
        shape = (len(step.image), self.settings.latent)
        return torch.randn(shape, generator=step.generator(purpose), device=step.image.device)

    @torch.no_grad()
    def _diversity(self, image: torch.Tensor) -> torch.Tensor:
        generator = self.prompts.module
        assert isinstance(generator, FourierPromptGenerator)
        random = torch.Generator(device=image.device).manual_seed(0)
        latents = torch.randn(8, self.settings.latent, generator=random, device=image.device)
        gains = generator.log_gains(latents).flatten(1)
        diversity: torch.Tensor = torch.pdist(gains).mean() / gains.shape[1] ** 0.5
        return diversity


def normalised(features: torch.Tensor) -> torch.Tensor:
    """``(B, C, *spatial)`` with every voxel's feature divided by its length, in at least float32."""
    return functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1, eps=1e-6)


def _statistics(stage: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over space per image and channel, ``(2, B, C)``."""
    voxels = stage.flatten(2)
    return torch.stack([voxels.mean(2), voxels.var(2, unbiased=False).add(1e-5).sqrt()])
