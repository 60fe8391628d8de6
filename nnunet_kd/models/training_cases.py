"""Which cases a trained fold of a model has seen, as far as something on disk says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_kd.models.folder import ModelFolder, read_json
from nnunet_kd.nnunet.environment import optional_folder
from nnunet_kd.nnunet.folds import SPLITS_FILE

SUMMARY = "validation/summary.json"
"""In a fold's folder: what nnU-Net writes of its validation."""


def split_training_cases(model: ModelFolder) -> dict[str, list[str]]:
    """By fold, its training cases as a split says; folds that it does not have are left out.

    Looked for is a ``splits_final.json`` in or beside the model folder, then in ``nnUNet_preprocessed`` of its dataset. Fold
    ``all`` has seen every case of the split.
    """
    found, preprocessed = own_training_cases(model), optional_folder("nnUNet_preprocessed")
    if found or preprocessed is None:
        return found
    return _of_split(preprocessed / str(model.plans()["dataset_name"]) / SPLITS_FILE, model.folds)


def own_training_cases(model: ModelFolder) -> dict[str, list[str]]:
    """By fold, its training cases as a ``splits_final.json`` in or beside the model folder says, which went with the model."""
    found = (_of_split(place / SPLITS_FILE, model.folds) for place in (model.folder, model.folder.parent))
    return next(filter(None, found), {})


def _of_split(path: Path, folds: Sequence[str]) -> dict[str, list[str]]:
    """Empty where there is no file, or none of these folds in it."""
    if not path.is_file():
        return {}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        splits = json.loads(path.read_text(encoding="utf-8"))
        everything = sorted({str(case) for split in splits for case in (*split["train"], *split["val"])})
        known = [fold for fold in folds if fold == "all" or int(fold) < len(splits)]
        return {fold: everything if fold == "all" else list(splits[int(fold)]["train"]) for fold in known}
    return {}


def known_training_cases(model: ModelFolder) -> dict[str, list[str]]:
    """By fold, training cases that are known: from a split, see :func:`split_training_cases`.

    Without one, from the validation summaries of the other folds, whose cases this one was trained on. These need not be all.
    """
    found = split_training_cases(model)
    if found:
        return found
    validated = {fold: validation_cases(model, fold) for fold in model.folds}
    everything = {case for cases in validated.values() for case in cases}
    found = {fold: sorted(everything - set(cases)) for fold, cases in validated.items() if cases}
    return {fold: cases for fold, cases in found.items() if cases}


def validation_summary(model: ModelFolder, fold: str) -> list[dict[str, Any]]:
    """The cases of a fold's ``validation/summary.json``; empty if there is none."""
    path = model.folder / f"fold_{fold}" / SUMMARY
    if not path.is_file():
        return []
    content = read_json(path, "the validation's summary", "Leave it out.")
    return list(content.get("metric_per_case", []))


def validation_cases(model: ModelFolder, fold: str) -> list[str]:
    """Names of a fold's validation cases, as far as the model folder tells."""
    ending = str(model.dataset_json()["file_ending"])
    return [
        Path(str(case.get("reference_file", ""))).name.removesuffix(ending) for case in validation_summary(model, fold)
    ]
