"""The teacher's probabilities as labels, read from disk or computed now."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.losses.soft import SoftLabelLoss, at_scale, valid_at_scale, with_background


class SoftSettings(ObjectiveSettings):
    """Ours; ``alpha`` takes the place of a weight."""

    weight: float = Field(1.0, exclude=True, description="refused: see `alpha`")
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of soft labels: total loss = (1 - a) nnU-Net's + a soft, a = alpha times the schedule; 0: labels "
        "only, 1: the teacher only. With `every` (`source: live` alone) a is 0 in the iterations between",
    )
    source: Literal["stored", "live"] = Field(
        "stored",
        description="stored: maps that `nnunet-kd soften` wrote; live: the teacher runs on every augmented patch. "
        "Of several teachers, stored maps are of their mean logits, live ones of their mean probabilities",
    )
    maps: str | None = Field(
        None,
        description="folder of the maps, its name, or how its name begins; default: the one that fits this fold, if there "
        "is only one",
    )
    maps_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="hash of the maps' description; saved with every run"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="T of the cross-entropy; above 1 softens both distributions. Stored "
        "probabilities below 1/510 are 0 at any T",
    )
    where_ignored: bool = Field(True, description="the teacher also speaks where the label is to be ignored")
    allow_leak: bool = Field(
        False, description="take maps of a teacher that was trained on cases which this fold validates on"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_weight(cls, values: Any) -> Any:
        if isinstance(values, dict) and "weight" in values:
            raise ValueError(
                "soft has no `weight`: `alpha` (0 to 1) is its share of the loss, and 1 - alpha that of labels"
            )
        return values

    @model_validator(mode="after")
    def _every_saves_a_teacher(self) -> SoftSettings:
        if self.every > 1 and self.source == "stored":
            raise ValueError(
                "`every` spares runs of a teacher, and stored soft labels need none; labels alone would teach in between. Leave "
                "it out; a smaller `alpha` gives labels more, `source: live` takes `every`"
            )
        return self

    def full_weight(self) -> float:
        """``alpha``."""
        return self.alpha

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher is needed in training."""
        return self.source == "live" and self.alpha > 0

    @property
    def compares_stages(self) -> bool:
        """Class probabilities alone are learned."""
        return False

    @property
    def reads_maps(self) -> bool:
        """Whether stored maps are."""
        return self.source == "stored" and self.alpha > 0


class Soft(Objective):
    """:class:`~nnunet_kd.losses.soft.SoftLabelLoss` on every deep-supervision scale, with nnU-Net's own weights of the scales.

    Coarser scales are asked for the mean probability of the voxels that they cover (:func:`~nnunet_kd.losses.soft.at_scale`);
    without ``where_ignored``, of those among them that are not ignored, and not at all where all are.
    Term: ``scale0``, ... (the finest first), weighted.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = SoftSettings
    needs_teacher_features = False
    replaces_labels: ClassVar[bool] = True

    def __init__(self, settings: SoftSettings, networks: NetworkPair) -> None:
        super().__init__(settings, networks)
        self.needs_teacher_logits = settings.runs_teacher
        self._alpha, self._where_ignored = settings.alpha, settings.where_ignored
        self._has_regions = networks.has_regions
        self.loss = SoftLabelLoss(
            networks.has_regions, networks.batch_dice, 1e-5, settings.temperature, networks.gather
        )

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        """One weighted term per scale that nnU-Net's loss counts; none with an ``alpha`` of 0."""
        if self._alpha == 0:
            return {}
        probabilities = self._probabilities(step)
        valid = None if self._where_ignored else step.targets.valid
        # nnU-Net's loss adds up the regions' cross entropies where there is an ignore label, and averages them elsewhere
        adds_up = self._has_regions and step.targets.valid is not None
        terms = {}
        for place, (logits, weight) in enumerate(zip(step.all_logits, step.scale_weights, strict=True)):
            if weight:
                size = logits.shape[2:]
                mask = None if valid is None else valid_at_scale(valid, size)
                if mask is None and adds_up:
                    mask = torch.ones_like(logits[:, :1], dtype=torch.bool)
                terms[f"scale{place}"] = weight * self.loss(logits, at_scale(probabilities, size, valid), mask)
        return terms

    def _probabilities(self, step: StepOutputs) -> torch.Tensor:
        if not self.needs_teacher_logits:
            assert step.soft_labels is not None, "the loader gave no maps"
            stored = step.soft_labels.to(step.student_logits.dtype)
            return stored if self._has_regions else with_background(stored)
        assert step.teacher_logits is not None
        logits = step.teacher_logits
        return logits.sigmoid() if self._has_regions else logits.softmax(1)
