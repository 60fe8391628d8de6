"""What a folder of soft labels is: its teachers, the choices they were run with, and the data they saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from pydantic import Field, ValidationError

from nnunet_kd.distillation.settings_model import SettingsModel
from nnunet_kd.errors import DataError

FILE = "soft_labels.json"
FOLDER = "soft_labels"
"""Beside the preprocessed cases: ``nnUNet_preprocessed/DATASET/soft_labels/<data identifier>/<name of the teachers>``."""
DATA_KEYS = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "preprocessor_name",
)
"""Of a plan's configuration: what decides which array a case becomes."""


class SoftTeacher(SettingsModel):
    """One teacher of a set."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of its checkpoint")
    model: str = Field(description="name of its model folder")
    fold: int | Literal["all"] = Field(description="that it was trained on")
    checkpoint: str = Field(description="file name")
    trained_on: list[str] | None = Field(description="its training cases; null: not known, no split says so")
    path: str | None = Field(
        None,
        description="model folder or archive: below nnUNet_results, or in full; null: an older set, which does not say",
    )

    @property
    def shown(self) -> str:
        """Its model and fold, for messages."""
        return f"{self.model}/fold_{self.fold}"


class Description(SettingsModel):
    """Content of :data:`FILE`. Everything but ``trained_on`` and ``path`` makes the set what it is."""

    version: Literal[1] = 1
    teachers: list[SoftTeacher] = Field(min_length=1)
    out_of_fold: bool = Field(
        description="every case by the one teacher that was not trained on it; else the mean logits of all"
    )
    mirror_axes: list[int] = Field(description="over which predictions were averaged; empty: none")
    trained_mirror_axes: list[int] = Field(description="that every teacher's training mirrored")
    step_size: float = Field(description="of the sliding window, as a share of the patch")
    heads: list[str] = Field(description="what the maps' channels are: foreground labels, or regions")
    has_regions: bool = Field(description="channels are independent; else the background has what is left to 1")
    data: dict[str, Any] = Field(description="what decided the arrays that the teachers saw")

    def digest(self) -> str:
        """Hash of what makes the set."""
        content = self.model_dump(mode="json")
        for teacher in content["teachers"]:
            del teacher["trained_on"], teacher["path"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of the folder: readable, and different for different sets."""
        folds = "_".join(str(teacher.fold) for teacher in self.teachers)
        parts = [self.teachers[0].model.split("__")[0], "folds" if len(self.teachers) > 1 else "fold", folds]
        parts += ["out_of_fold"] if self.out_of_fold else []
        parts += ["mirrored"] if self.mirror_axes else ["not_mirrored"]
        return "_".join([*parts, self.digest()[:8]])

    def teachers_of(self, case: str) -> list[int]:
        """Places in ``teachers`` of those that speak on a case; empty: none may."""
        if not self.out_of_fold:
            return list(range(len(self.teachers)))
        fresh = [place for place, one in enumerate(self.teachers) if case not in (one.trained_on or ())]
        return fresh[:1]


def data_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What of a plan decides the preprocessed arrays, in plain JSON values; see :data:`DATA_KEYS`."""
    resolved = PlansManager(dict(plans)).get_configuration(configuration).configuration
    found = {key: resolved.get(key) for key in DATA_KEYS}
    found["transpose_forward"] = plans["transpose_forward"]
    found["image_reader_writer"] = plans["image_reader_writer"]
    if "CTNormalization" in (found["normalization_schemes"] or ()):
        found["foreground_intensity_properties_per_channel"] = plans["foreground_intensity_properties_per_channel"]
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def read_description(folder: Path) -> Description:
    """The description of a folder of maps.

    Raises:
        DataError: there is none, or it is not of this version.
    """
    path = folder / FILE
    try:
        return Description.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no folder of soft labels: it has no {FILE}. `nnunet-kd soften` makes one."
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).splitlines()[:3])
        raise DataError(
            f"{path} does not describe soft labels: {reason}. Delete the folder, then make them anew with `nnunet-kd soften`."
        ) from error


def sets_of(parent: Path) -> list[Path]:
    """Every described folder under ``nnUNet_preprocessed/DATASET/soft_labels/<data identifier>``."""
    return sorted(path.parent for path in parent.glob(f"*/{FILE}"))


def unknown_teachers(description: Description) -> list[str]:
    """Teachers of which it is not known what they were trained on."""
    return [one.shown for one in description.teachers if one.trained_on is None]


def leaked_cases(description: Description, validated: Sequence[str]) -> dict[str, int]:
    """By fold of a teacher: how many of a student's validation cases it was trained on; teachers without are left out.

    Teachers of which that is not known (:func:`unknown_teachers`) are left out, too.
    """
    counts = {str(one.fold): len(set(one.trained_on or ()) & set(validated)) for one in description.teachers}
    return {fold: count for fold, count in counts.items() if count}


def leaks_told(description: Description, fold: int | str, validated: Sequence[str]) -> str:
    """Which folds' teachers were trained on how many of a student's validation cases; empty: none that is known.

    Args:
        description: of the teachers.
        fold: the student's; ``all`` validates on what it learns from anyway.
        validated: its validation cases.
    """
    counts = {} if fold == "all" else leaked_cases(description, validated)
    folds = ", ".join(f"fold {one} on {count}" for one, count in counts.items())
    return f"{folds} of {len(validated)}" if counts else ""
