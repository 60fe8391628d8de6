"""The work folder's dataset: the model's own plan, cases kept aside, and preprocessed arrays."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.datasets.splits import grouped_holdout, groups_by_regex
from nnunet_kd.distillation.soft_labels.student import unlabelled_folder_of
from nnunet_kd.errors import DataError
from nnunet_kd.nnunet.datasets import case_names
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.system.files import remove_leftover_folders, write_atomically
from nnunet_kd.workflows.preprocessing import Arrays, preprocess_arrays
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import Places

HELD_OUT = 0.2
"""Share of the patients that is kept aside."""
FOLD = 0


@dataclass(frozen=True)
class Split:
    """Cases to train on, and cases kept aside to measure agreement on."""

    training: list[str]
    held_out: list[str]


def split_cases(cases: Sequence[str], group_regex: str | None) -> Split:
    """A fifth of the patients aside; the same names give the same split.

    Raises:
        DataError: the expression does not fit the names, or there is only one patient.
    """
    groups = {case: case for case in cases} if group_regex is None else groups_by_regex(cases, group_regex)
    if len(set(groups.values())) < 2:
        raise DataError(
            f"--group-regex {group_regex!r} finds one patient only in {len(cases)} images, so none can be kept aside."
        )
    (split,) = grouped_holdout(groups, HELD_OUT)
    return Split(sorted(split["train"]), sorted(split["val"]))


def arrays_folder(places: Places, teacher: Teacher) -> Path:
    """Of preprocessed cases with labels, and of those kept aside."""
    identifier = PlansManager(teacher.plans).get_configuration(teacher.configuration).data_identifier
    return places.preprocessed(teacher.dataset) / str(identifier)


def describe_dataset(places: Places, teacher: Teacher, split: Split, labelled: Mapping[str, Path]) -> None:
    """The files that nnU-Net's trainers look for beside preprocessed cases.

    Raises:
        MissingRequirement: the disk refused.
    """
    folder = places.preprocessed(teacher.dataset)
    arrays_folder(places, teacher).mkdir(parents=True, exist_ok=True)
    unlabelled_folder_of(arrays_folder(places, teacher)).mkdir(parents=True, exist_ok=True)
    plans = teacher.plans
    fingerprint: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # the training does not need it
        fingerprint = json.loads((teacher.model.folder / "dataset_fingerprint.json").read_text(encoding="utf-8"))
    contents: dict[str, Any] = {
        f"{plans['plans_name']}.json": plans,
        "dataset.json": teacher.dataset_json,
        # cases without labels lie in a folder of their own, and are added by the trainer
        SPLITS_FILE: [{"train": [case for case in split.training if case in labelled], "val": split.held_out}],
        "dataset_fingerprint.json": fingerprint,
    }
    for name, content in contents.items():
        _write_json(folder / name, content)


def write_context(folder: Path, teacher: Teacher) -> None:
    """What evaluation looks for beside predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "plans.json", teacher.plans)
    _write_json(folder / "dataset.json", teacher.dataset_json)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=4).encode()
    write_atomically(path, lambda file: file.write(text))


def preprocess(
    images: Images, split: Split, teacher: Teacher, places: Places, show: Callable[[float, float, str], Any]
) -> int:
    """Preprocess every case with the model's plan, as far as that is not done; returns how many that were.

    Cases kept aside get the true labels where there are any, else the teacher's segmentation, which must be there.

    Raises:
        DataError: an image cannot be preprocessed.
        MissingRequirement: the disk refused.
    """
    own = arrays_folder(places, teacher)
    apart = unlabelled_folder_of(own)
    ending = str(teacher.dataset_json["file_ending"])
    wanted = [
        Arrays(case, images.cases[case].images, images.labels.get(case), own if case in images.labels else apart)
        for case in split.training
    ]
    said = {case: places.predictions("teacher") / f"{case}{ending}" for case in split.held_out}
    wanted += [
        Arrays(case, images.cases[case].images, images.labels.get(case, said[case]), own) for case in split.held_out
    ]
    for folder in (own, apart):
        remove_leftover_folders(folder)
    done = {folder: set(case_names(folder)) for folder in (own, apart)}
    todo = [one for one in wanted if one.case not in done[one.folder]]
    preprocess_arrays(todo, teacher.plans, teacher.configuration, teacher.dataset_json, show)
    return len(todo)
