"""``splits_final.json`` with every patient on one side only.

nnU-Net reads it from ``nnUNet_preprocessed/DatasetXXX_Name``. Its planner copies it there from ``nnUNet_raw/DatasetXXX_Name``
if there is none yet, and stops if the two differ; preprocessing removes only the folder of its own configuration. Written to
both, the splits hold whether preprocessing came before or comes after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold, GroupShuffleSplit

from nnunet_kd.datasets.case import FOLDS, SEED
from nnunet_kd.errors import DataError, MissingRequirement, SettingsError
from nnunet_kd.nnunet.environment import dataset_name, optional_folder, required_folder
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import write_atomically
from nnunet_kd.volumes.naming import images_in, segmentations_in

Splits = list[dict[str, list[str]]]


def grouped_folds(groups: Mapping[str, str], folds: int = FOLDS, seed: int = SEED) -> Splits:
    """Cross-validation over patients: scikit-learn's ``GroupKFold``, shuffled by ``seed``.

    Args:
        groups: the patient of every training case.
        folds: how many; every case is in validation exactly once.
        seed: of the shuffle; the same cases and seed give the same splits.

    Raises:
        DataError: fewer than two patients or folds, or more folds than patients.
    """
    cases, patients = _sorted(groups)
    count = len(set(patients))
    if count < 2:
        raise _one_patient(cases)
    if not 2 <= folds <= count:
        raise DataError(
            f"{folds} folds cannot be made of {counted(count, 'patient')} ({counted(len(cases), 'case')}): between 2 "
            f"and {count} folds are possible. "
            "Give more cases, or take one split, which every command that makes splits does with --holdout 0.34 (a third of the "
            "patients); `nnunet-kd split` makes fewer folds with --number-of-folds."
        )
    return _named(GroupKFold(folds, shuffle=True, random_state=seed).split(cases, groups=patients), cases)


def grouped_holdout(groups: Mapping[str, str], share: float, seed: int = SEED) -> Splits:
    """One split, with ``share`` of the patients in validation (scikit-learn's ``GroupShuffleSplit``).

    nnU-Net makes folds that the file does not hold by itself, at random and over cases; train fold 0 only.

    Raises:
        SettingsError: ``share`` is not between 0 and 1.
        DataError: fewer than two patients, or one side is left without a patient.
    """
    cases, patients = _sorted(groups)
    if not 0 < share < 1:
        raise SettingsError(
            f"--holdout is the share of patients in validation, between 0 and 1, not {share:g}; the papers use 0.2."
        )
    if len(set(patients)) < 2:
        raise _one_patient(cases)
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    try:
        return _named(splitter.split(cases, groups=patients), cases)
    except ValueError as error:
        raise DataError(
            f"Of {counted(len(set(patients)), 'patient')}, {share:g} cannot be held out: {error}. Give more cases or "
            f"another share."
        ) from error


def _one_patient(cases: Sequence[str]) -> DataError:
    return DataError(
        f"training and validation need at least two patients, but all cases ({len(cases)}) are of one. Give all cases of the "
        f"dataset together."
    )


def groups_by_regex(cases: Iterable[str], pattern: str) -> dict[str, str]:
    """The patient of every case: what ``pattern`` finds in its name (its first group, if it has one).

    >>> groups_by_regex(["BraTS-GLI-00005-100", "BraTS-GLI-00005-101"], r"GLI-(\\d+)")
    {'BraTS-GLI-00005-100': '00005', 'BraTS-GLI-00005-101': '00005'}

    Raises:
        SettingsError: not a regular expression.
        DataError: one that some case does not match.
    """
    cases = list(cases)
    groups = groups_where_found(cases, pattern)
    unmatched = [case for case in cases if case not in groups]
    if unmatched:
        raise DataError(
            f"--group-regex {pattern!r} finds no patient in {counted(len(unmatched), 'case name')}, for example "
            f"{', '.join(sorted(unmatched)[:5])}. Every case needs a patient."
        )
    return groups


def groups_where_found(cases: Iterable[str], pattern: str) -> dict[str, str]:
    """:func:`groups_by_regex` of those cases in whose names ``pattern`` finds something; the others are left out.

    Raises:
        SettingsError: not a regular expression.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"--group-regex {pattern!r} is not a regular expression: {error}.") from error
    found = {case: expression.search(case) for case in cases}
    groups = {case: match[1 if expression.groups else 0] for case, match in found.items() if match is not None}
    return {case: group for case, group in groups.items() if group}


def training_cases(dataset: str) -> tuple[str, list[str]]:
    """The full name and the training cases of an nnU-Net dataset, given by id or name.

    Read from ``nnUNet_raw``; from the ``gt_segmentations`` of ``nnUNet_preprocessed`` where only that is at hand.

    Raises:
        DataError: there is no such dataset, more than one, its dataset.json does not hold, or it has no cases.
    """
    name = dataset_name(dataset)
    for variable, images in (("nnUNet_raw", "imagesTr"), ("nnUNet_preprocessed", "gt_segmentations")):
        place = optional_folder(variable)
        if place is None or not (folder := place / name).joinpath("dataset.json").is_file():
            continue
        try:
            description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            ending = description["file_ending"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder / 'dataset.json'} is not an nnU-Net v2 dataset.json ({type(error).__name__}: {error}). "
                "Convert the dataset again, or repair the file."
            ) from error
        if "dataset" in description:
            cases = sorted(description["dataset"])
        elif images == "imagesTr":
            cases = sorted(images_in(folder / images, ending)) if (folder / images).is_dir() else []
        else:
            cases = sorted(segmentations_in(folder / images, ending)) if (folder / images).is_dir() else []
        if cases:
            return name, cases
    raise DataError(
        f"No training cases of {name} were found in nnUNet_raw or nnUNet_preprocessed. Convert the dataset first."
    )


def splits_files(name: str) -> list[Path]:
    """Where the splits belong: beside the raw data, for later preprocessing, and where nnU-Net reads them.

    Raises:
        MissingRequirement: neither ``nnUNet_raw`` nor ``nnUNet_preprocessed`` is set.
    """
    place, raw = optional_folder("nnUNet_preprocessed"), optional_folder("nnUNet_raw")
    if place is None:
        return [required_folder("nnUNet_raw") / name / SPLITS_FILE]
    preprocessed = place / name
    if raw is None or ((preprocessed / "dataset.json").is_file() and not (raw / name).is_dir()):
        return [preprocessed / SPLITS_FILE]
    return [folder / SPLITS_FILE for folder in (raw / name, preprocessed)]


def refuse_other_splits(name: str, splits: Splits, by_split: bool = False) -> None:
    """Check that no file of other splits is in the way.

    Args:
        name: of the dataset.
        splits: that are to be written.
        by_split: ``nnunet-kd split`` asks, which can replace it.

    Raises:
        DataError: there is one; models may have been trained with it, so it is not replaced unasked.
    """
    others = [path for path in splits_files(name) if path.is_file() and _read(path) != splits]
    if others:
        raise DataError(
            f"{' and '.join(str(path) for path in others)} hold(s) other splits. Models may have been trained with them, and "
            "their validation cases would become training cases. If none was, delete the file(s) and run again"
            f"{', or replace them with `nnunet-kd split --overwrite`' if by_split else ''}."
        )


def write_splits(name: str, splits: Splits, *, overwrite: bool = False) -> list[Path]:
    """Write ``splits`` to ``splits_files(name)``; returns those files.

    Raises:
        DataError: other splits are there and ``overwrite`` is false.
        MissingRequirement: the disk refused.
    """
    if not overwrite:
        refuse_other_splits(name, splits, by_split=True)
    written = splits_files(name)
    content = json.dumps(splits, indent=2).encode() + b"\n"
    for path in written:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MissingRequirement(f"{path.parent} cannot be made: {error}. Is nnU-Net's variable right?") from error
        write_atomically(path, lambda file: file.write(content))
    return written


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _sorted(groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
    cases = sorted(groups)
    return cases, [groups[case] for case in cases]


def _named(indices: Iterable[tuple[np.ndarray, np.ndarray]], cases: list[str]) -> Splits:
    return [
        {"train": [cases[i] for i in train], "val": [cases[i] for i in validation]} for train, validation in indices
    ]
