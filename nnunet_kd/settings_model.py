"""What every settings model shares."""

from __future__ import annotations

import difflib
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SettingsModel(BaseModel):
    """Unknown keys are refused and values are fixed once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Schedule(SettingsModel):
    """How an objective's weight develops over epochs: a factor between 0 and 1."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="constant: 1 from `start` on; linear and cosine: rise from 0 to 1 over `length` epochs",
    )
    start: int = Field(
        default=0, ge=0, description="first epoch with a weight above zero is the one after `start` in a ramp"
    )
    length: int = Field(default=0, ge=0, description="epochs the ramp takes")

    def factor(self, epoch: int) -> float:
        """The factor in ``epoch`` (counted from 0): 0 before ``start``, 1 from ``start + length`` on."""
        if epoch < self.start:
            return 0.0
        progress = 1.0 if self.length == 0 else min(1.0, (epoch - self.start) / self.length)
        if self.kind == "constant":
            return 1.0
        return progress if self.kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))


def did_you_mean(name: str, known: list[str]) -> str:
    """`` (did you mean 'nearest'?)`` for a name that is not known; empty if none of the known ones is near."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
