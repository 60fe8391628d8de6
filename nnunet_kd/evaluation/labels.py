"""The labels or regions of a dataset, as nnU-Net's ``dataset.json`` names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.errors import DataError


@dataclass(frozen=True)
class LabelSet:
    """What ``dataset.json`` says about the segmentations.

    Attributes:
        classes: name and label, or labels of a region.
        known: all values a segmentation may hold, without the ignore label.
        ignore: the ignore label; voxels with it in the reference count for nothing.
        file_ending: of the segmentations.
    """

    classes: dict[str, int | tuple[int, ...]]
    known: frozenset[int]
    ignore: int | None
    file_ending: str


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read nnU-Net's ``dataset.json``.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; the labels are read from it. Give nnU-Net's dataset.json with --dataset-json."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}). Give another dataset.json with --dataset-json."
        ) from error
    return content


def read_labels(dataset_json: dict[str, Any], source: Path) -> LabelSet:
    """Labels or regions to evaluate, as nnU-Net itself understands ``dataset.json``.

    Raises:
        DataError: something that nnU-Net would not accept either.
    """
    try:
        labels = dataset_json["labels"]
        manager = LabelManager(labels, dataset_json.get("regions_class_order"))
        wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        file_ending = str(dataset_json["file_ending"])
    except (KeyError, AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{source} does not describe labels as nnU-Net needs them: {error}. It must hold `labels` (with "
            f"background: 0), `file_ending` and, with regions, `regions_class_order`."
        ) from error
    as_key = {_as_key(value): name for name, value in labels.items() if name != "ignore"}
    classes = {as_key[_as_key(value)]: tuple(value) if isinstance(value, list) else value for value in wanted}
    return LabelSet(classes, frozenset(int(value) for value in manager.all_labels), manager.ignore_label, file_ending)


def _as_key(value: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(part) for part in value) if isinstance(value, Sequence) else (int(value),)
