"""FreeKD: points of interest in the frequency bands, found by prompts."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.objectives.projection import ProjectingSettings, each, stage_projections
from nnunet_kd.losses.freekd import FrequencyPrompts, masked_difference, tune_prompts
from nnunet_kd.losses.self_trained import SelfTrained


class FreeKDSettings(ProjectingSettings):
    """The paper's values are for detectors; all are ours (docs/reference-methods.md)."""

    weight: float = Field(0.05, ge=0, description="factor of the objective in the total loss")
    prompts: int = Field(2, ge=1, description="prompts for the approximation and for each level of details")
    levels: int = Field(3, ge=1, description="levels of the Haar transform")
    prompt_iterations: int = Field(250, ge=0, description="iterations that tune the prompts before distillation starts")
    apart: float = Field(1.0, ge=0, description="factor of the Dice term that keeps a level's prompts apart")
    learning_rate: float = Field(1e-2, gt=0, description="of the prompts (Adam)")


class FreeKD(Objective):
    """``sum_i sum_levels mean(m |W(T_i) - W(phi_i(S_i))|)``, Haar details of three levels (FreeKD, 2024, as released; 3D ours).

    A level's mask ``m (B, 1, *size)`` is the mean of its prompts' masks; the approximation is left out. First the prompts alone
    are tuned, for ``prompt_iterations``, by nnU-Net's loss of the frozen teacher whose stage features were masked in all bands
    (summed over prompts) and inverse-transformed, plus the pairwise Dice overlap of masks, summed over approximation and levels
    and averaged over stages; meanwhile the objective has no terms and the student trains on its own. Then the prompts stay
    fixed and the student is distilled.

    Terms: ``stage0`` (finest), ... Logged while tuning: ``task``, ``overlap``.
    """

    Settings: ClassVar[type[ProjectingSettings]] = FreeKDSettings
    reads_labels: ClassVar[bool] = True
    explores = True

    def __init__(self, settings: FreeKDSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.settings = settings
        self.projections = stage_projections(networks)
        stages = [FrequencyPrompts(c, settings.prompts, settings.levels) for c in networks.teacher_channels]
        self.prompts = SelfTrained(nn.ModuleList(stages), settings.learning_rate)
        # a number of Python's: asking a GPU for it would wait for all that the step has queued there
        self._tuned_iterations = 0

    def get_extra_state(self) -> dict[str, int]:
        """How long the prompts were tuned, which thereby becomes part of ``state_dict``."""
        return {"tuned_iterations": self._tuned_iterations}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Counterpart of :meth:`get_extra_state`."""
        self._tuned_iterations = state["tuned_iterations"]

    def is_preparing(self) -> bool:
        """While prompts are being tuned."""
        return self._tuned_iterations < self.settings.prompt_iterations

    def _stage_prompts(self) -> nn.ModuleList:
        stages = self.prompts.module
        assert isinstance(stages, nn.ModuleList)
        return stages

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One scalar per stage; none while prompts are being tuned."""
        if self.is_preparing():
            return {}
        stages = zip(
            step.student_features, step.teacher_features, self._stage_prompts(), each(self.projections), strict=True
        )
        return {f"stage{index}": masked_difference(*stage) for index, stage in enumerate(stages)}

    def explore(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One step of tuning, until there were ``prompt_iterations`` of them."""
        if not self.is_preparing():
            return {}
        features = [feature.float() for feature in step.teacher_features]
        assert step.teacher is not None
        decode, stages = step.teacher.decode_with_gradient, list(self._stage_prompts())
        log = tune_prompts(self.prompts, features, decode, step.task_loss, self.settings.apart, stages)
        self._tuned_iterations += 1
        return log
