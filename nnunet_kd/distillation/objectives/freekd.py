"""FreeKD: points of interest in the frequency bands, found by prompts."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.exploration import SelfTrained
from nnunet_kd.distillation.objectives.projection import ProjectingSettings, stage_projections
from nnunet_kd.losses.wavelets import dwt, idwt

WAVELET, MODE = "haar", "periodization"


class FreeKDSettings(ProjectingSettings):
    """The paper's values are for detectors; all are ours (docs/methods.md)."""

    weight: float = Field(0.05, ge=0, description="factor of the objective in the total loss")
    prompts: int = Field(2, ge=1, description="prompts per band")
    prompt_iterations: int = Field(250, ge=0, description="iterations that tune the prompts before distillation starts")
    apart: float = Field(1.0, ge=0, description="factor of the Dice term that keeps a band's prompts apart")
    learning_rate: float = Field(1e-2, gt=0, description="of the prompts (Adam)")


class FrequencyPrompts(nn.Module):
    """Prompts of one stage: per band ``(prompts, Ct)``, a sigmoid of whose product with the band is the mask.

    They start small and random: equal ones would stay equal.
    """

    def __init__(self, channels: int, dimensions: int, prompts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(2**dimensions, prompts, channels))

    def forward(self, bands: torch.Tensor) -> torch.Tensor:
        """Bands ``(bands, B, Ct, *half)`` to masks ``(bands, B, prompts, *half)`` between 0 and 1."""
        return torch.einsum("npc,nbc...->nbp...", self.weight.to(bands.dtype), bands).sigmoid()


class FreeKD(Objective):
    """``sum_i sum_bands mean(m |W(T_i) - W(phi_i(S_i))|)``, 3D Haar bands, one level (Zhang et al., FreeKD, 2024; our 3D form).

    The mask ``m (B, 1, *half)`` is the mean of a band's prompt masks (ours). First the prompts alone are tuned, for
    ``prompt_iterations``, by nnU-Net's loss of the frozen teacher whose stage features were masked in the bands and
    inverse-transformed, plus the mean pairwise Dice overlap of a band's masks; meanwhile the objective has no terms and
    the student trains on its own. Then the prompts stay fixed and the student is distilled.

    Terms: ``stage0`` (finest), ... Logged while tuning: ``task``, ``overlap``.
    """

    Settings: ClassVar[type[ProjectingSettings]] = FreeKDSettings
    explores = True

    def __init__(self, settings: FreeKDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.settings = settings
        self.projections = stage_projections(networks)
        stages = [FrequencyPrompts(c, networks.dimensions, settings.prompts) for c in networks.teacher_channels]
        self.prompts = SelfTrained(nn.ModuleList(stages), settings.learning_rate)
        # a number of Python's: asking a GPU for it would wait for all that the step has queued there
        self._tuned_iterations = 0

    def get_extra_state(self) -> dict[str, int]:
        """How long the prompts were tuned, which thereby becomes part of ``state_dict``."""
        return {"tuned_iterations": self._tuned_iterations}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Counterpart of :meth:`get_extra_state`."""
        self._tuned_iterations = state["tuned_iterations"]

    def _is_tuned(self) -> bool:
        return self._tuned_iterations >= self.settings.prompt_iterations

    def _stage_prompts(self) -> nn.ModuleList:
        stages = self.prompts.module
        assert isinstance(stages, nn.ModuleList)
        return stages

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per stage; none while prompts are being tuned."""
        if not self._is_tuned():
            return {}
        terms = {}
        stages = zip(step.teacher_features, step.student_features, self.projections, self._stage_prompts(), strict=True)
        for index, (teacher, student, projection, prompts) in enumerate(stages):
            with torch.no_grad():
                mask = prompts(stacked_bands(teacher)).mean(2, keepdim=True)
            difference = stacked_bands(projection(student) - teacher)
            terms[f"stage{index}"] = (mask * difference.abs()).flatten(1).mean(1).sum()
        return terms

    def explore(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One step of tuning, until there were ``prompt_iterations`` of them."""
        if self._is_tuned():
            return {}
        features = [feature.clone().float() for feature in step.teacher_features]
        bands = [stacked_bands(feature) for feature in features]
        log: dict[str, torch.Tensor] = {}

        def loss() -> torch.Tensor:
            masks = [prompts(stage) for prompts, stage in zip(self._stage_prompts(), bands, strict=True)]
            masked = [
                from_bands(mask.mean(2, keepdim=True) * stage, tuple(feature.shape[2:]))
                for mask, stage, feature in zip(masks, bands, features, strict=True)
            ]
            log["task"] = step.task_loss(step.teacher.decode_with_gradient(masked))
            log["overlap"] = torch.stack([overlap(mask) for mask in masks]).mean()
            return log["task"] + self.settings.apart * log["overlap"]

        self.prompts.minimise(loss)
        self._tuned_iterations += 1
        return {name: value.detach() for name, value in log.items()}


def stacked_bands(features: torch.Tensor) -> torch.Tensor:
    """One level of Haar bands of ``(B, C, *spatial)`` as ``(bands, B, C, *half)``, the approximation first."""
    approximation, details = dwt(features, WAVELET, 1, MODE)
    assert isinstance(approximation, torch.Tensor)
    assert isinstance(details, dict)
    return torch.stack([approximation, *(details[name] for name in sorted(details))])


def from_bands(bands: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`stacked_bands` for features of spatial ``shape``."""
    dimensions = bands.ndim - 3
    letters = ["".join("ad"[place >> axis & 1] for axis in reversed(range(dimensions))) for place in range(len(bands))]
    details = {name: bands[place] for place, name in enumerate(letters) if place}
    return idwt([bands[0], details], WAVELET, MODE, shape)


def overlap(masks: torch.Tensor) -> torch.Tensor:
    """Mean Dice overlap ``2 sum(p q) / (sum(p^2) + sum(q^2))`` of all pairs of a band's masks ``(bands, B, prompts, *half)``.

    Zero for a single prompt.
    """
    count = masks.shape[2]
    if count == 1:
        return masks.new_zeros(())
    voxels = masks.flatten(3)
    products = torch.matmul(voxels, voxels.transpose(2, 3))
    squares = products.diagonal(dim1=2, dim2=3)
    dice = 2 * products / (squares[..., :, None] + squares[..., None, :])
    pairs = torch.triu_indices(count, count, offset=1, device=masks.device)
    return dice[..., pairs[0], pairs[1]].mean()
