"""What every settings model shares."""

from __future__ import annotations

import difflib
import json
import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SettingsModel(BaseModel):
    """Unknown keys are refused and values are fixed once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Schedule(SettingsModel):
    """How an objective's weight develops over epochs: a factor between 0 and 1.

    While it is 0 the teacher does not run, so epochs cost what the student's own do.

    Attributes:
        kind: the curve of rise and fall.
        start, length: where the rise begins and how many epochs it takes.
        end, fall: where the weight is 0 again and how many epochs it fell before.
    """

    kind: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="`constant`: 1 from `start` to `end`; `linear` and `cosine`: rise over `length` epochs, fall over `fall`",
    )
    start: int = Field(
        default=0,
        ge=0,
        description="epoch, from 0, in which the rise begins; its own weight is zero unless `length` is",
    )
    length: int = Field(default=0, ge=0, description="epochs of the rise")
    end: int | None = Field(
        default=None, ge=1, description="from this epoch on the weight is zero and labels alone teach; default: never"
    )
    fall: int = Field(default=0, ge=0, description="epochs before `end` over which the weight falls")

    @model_validator(mode="after")
    def _rises_before_it_falls(self) -> Schedule:
        if self.length and "kind" not in self.model_fields_set:
            raise ValueError("`length` needs a kind that rises: linear or cosine")
        if self.fall and (self.end is None or self.kind == "constant"):
            raise ValueError("`fall` needs `end`, and a kind that falls: linear or cosine")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"`end` ({self.end}) must be after `start` ({self.start})")
        if self.end is not None and self.kind != "constant" and self.start + self.length > self.end - self.fall:
            raise ValueError(
                f"the weight rises until epoch {self.start + self.length} and falls from {self.end - self.fall} on: make "
                f"`length` or `fall` shorter, or `end` later"
            )
        return self

    def factor(self, epoch: int) -> float:
        """The factor in ``epoch``, counted from 0.

        0 before ``start``, 1 from ``start + length`` to ``end - fall``, 0 from ``end`` on.
        """
        if epoch < self.start or (self.end is not None and epoch >= self.end):
            return 0.0
        if self.kind == "constant":
            return 1.0
        risen = 1.0 if self.length == 0 else min(1.0, (epoch - self.start) / self.length)
        left = 1.0 if self.end is None or self.fall == 0 else min(1.0, (self.end - epoch) / self.fall)
        progress = min(risen, left)
        return progress if self.kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))


def did_you_mean(name: str, known: list[str]) -> str:
    """`` (did you mean 'nearest'?)`` for a name that is not known; empty if none of the known ones is near."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def yaml_text(value: Any) -> str:
    """A value as ``--set`` takes it: JSON, with characters beyond U+FFFF as they are.

    JSON writes each of these as two escapes, which YAML reads as two characters.
    """
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[^ -~\U00010000-\U0010ffff]+", lambda found: json.dumps(found[0])[1:-1], text)
