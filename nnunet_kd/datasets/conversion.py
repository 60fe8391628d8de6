"""The way from found cases to an nnU-Net dataset: check all, then write; the same for every dataset."""

from __future__ import annotations

import csv
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nnunet_kd.datasets.case import FILE_ENDING, SKIPPED, Case, ConversionOptions, DatasetDescription
from nnunet_kd.datasets.checks import BadCase, BadCasesError, check_case
from nnunet_kd.datasets.destination import SUBFOLDERS, refuse_unknown_files, refuse_wrong_folder, require_room
from nnunet_kd.datasets.splits import (
    Splits,
    grouped_folds,
    grouped_holdout,
    refuse_other_splits,
    splits_files,
    write_splits,
)
from nnunet_kd.datasets.writing import Journal, partial_folder, targets, write_case
from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.nnunet.datasets import write_dataset_json
from nnunet_kd.nnunet.environment import required_folder
from nnunet_kd.system.counts import counted, some
from nnunet_kd.system.files import write_atomically, write_csv
from nnunet_kd.system.processes import as_finished, worker_pool


@dataclass
class ConversionSummary:
    """What a conversion did, or would do (``dry_run``)."""

    folder: Path
    dry_run: bool
    training: list[str]
    test: list[str]
    kept: int
    """Cases that were finished before."""
    skipped: list[BadCase]
    patients: int
    """In the training cases."""
    patients_with_several: int
    """Of these, with more than one case."""
    splits: Splits
    splits_files: list[Path]
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Checked:
    """The cases after the check."""

    finished: list[Case]
    to_write: list[Case]
    bad: list[BadCase]
    empty: set[str]
    """Names of the training cases of which the label map holds background only."""
    harmonised: int = 0


def convert(
    cases: list[Case], description: DatasetDescription, sources: list[Path], options: ConversionOptions
) -> ConversionSummary:
    """Check ``cases``, then write them with ``dataset.json`` and ``splits_final.json`` into ``nnUNet_raw``.

    Without any segmentation they become ``imagesTs`` of a new dataset, or of the one that an earlier run has made.

    Safe to run again: cases that are finished are kept unread, the rest is redone. Nothing is written into ``sources``.

    Raises:
        BadCasesError: some cases do not hold and ``options.skip_bad`` is false.
        DataError: no usable case; folders or splits stand in the way.
        MissingRequirement: ``nnUNet_raw`` is not set, the disk is full or refused, or a worker process died.
    """
    folder = required_folder("nnUNet_raw") / description.folder_name
    refuse_wrong_folder(folder, description, sources)
    with worker_pool(min(options.processes, len(cases))) as pool:
        return _convert(cases, description, folder, options, pool)


def _convert(
    cases: list[Case],
    description: DatasetDescription,
    folder: Path,
    options: ConversionOptions,
    pool: ProcessPoolExecutor | None,
) -> ConversionSummary:
    journal = Journal(folder)
    checked = _check(cases, description, journal, options, pool)
    if checked.bad and not options.skip_bad:
        raise BadCasesError(checked.bad, len(cases))
    usable = sorted(checked.finished + checked.to_write, key=lambda case: case.name)
    patients = {case.name: case.patient for case in usable if case.label is not None}
    if not usable:
        raise DataError("No usable case was found. Is the download extracted, and is this its folder?")
    # images to predict on need no splits, and leave those of a dataset that is there already as they are
    splits = _splits(patients, options) if patients else []
    refuse_unknown_files(folder, usable, description)
    if splits:
        refuse_other_splits(description.folder_name, splits)
    if not options.dry_run:
        _write(checked, description, folder, journal, options, pool)
        if patients or not (folder / "dataset.json").is_file():
            _write_dataset_json(folder, description, len(patients))
        if splits:
            write_splits(description.folder_name, splits)
        _write_skipped(folder, checked.bad, {case.name for case in cases})
    per_patient = Counter(patients.values())
    return ConversionSummary(
        folder=folder,
        dry_run=options.dry_run,
        training=sorted(patients),
        test=[case.name for case in usable if case.label is None],
        kept=len(checked.finished),
        skipped=checked.bad,
        patients=len(per_patient),
        patients_with_several=sum(count > 1 for count in per_patient.values()),
        splits=splits,
        splits_files=splits_files(description.folder_name) if splits else [],
        warnings=_warnings(checked, usable, options, folder, description, journal),
    )


def _check(
    cases: list[Case],
    description: DatasetDescription,
    journal: Journal,
    options: ConversionOptions,
    pool: ProcessPoolExecutor | None,
) -> _Checked:
    checked = _Checked([], [], [], set())
    to_check = []
    for case in cases:
        entry = None if case.problems else journal.finished(case, description, options.link)
        if entry is None:
            to_check.append(case)
            continue
        checked.finished.append(case)
        checked.harmonised += entry.harmonised
        if entry.empty_label:
            checked.empty.add(case.name)
    check = partial(check_case, description=description)
    for place, result in as_finished(check, to_check, pool, "Checking"):
        case = to_check[place]
        if result.problems:
            checked.bad.append(BadCase(case.name, case.folder, result.problems))
        else:
            checked.to_write.append(case)
            if result.empty_label:
                checked.empty.add(case.name)
    checked.bad.sort(key=lambda case: (case.name, case.folder))
    checked.to_write.sort(key=lambda case: case.name)
    return checked


def _splits(patients: dict[str, str], options: ConversionOptions) -> Splits:
    if options.holdout is not None:
        return grouped_holdout(patients, options.holdout, options.seed)
    return grouped_folds(patients, seed=options.seed)


def _write(
    checked: _Checked,
    description: DatasetDescription,
    folder: Path,
    journal: Journal,
    options: ConversionOptions,
    pool: ProcessPoolExecutor | None,
) -> None:
    try:
        if not options.link:
            require_room(folder, checked.to_write)
        for name in SUBFOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        journal.path.touch()
        with partial_folder(folder) as temporary:
            write = partial(
                write_case, description=description, folder=folder, temporary_folder=temporary, link=options.link
            )
            for place, entry in as_finished(write, checked.to_write, pool, "Writing"):
                case = checked.to_write[place]
                journal.add(entry)
                checked.harmonised += entry.harmonised
                if entry.empty_label:
                    checked.empty.add(case.name)
    except OSError as error:
        raise MissingRequirement(
            f"{folder} cannot be written: {error}. Finished cases are kept; when the cause is removed, "
            "run the same command again."
        ) from error


def _write_dataset_json(folder: Path, description: DatasetDescription, training_cases: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        write_dataset_json(
            Path(temporary),
            list(description.channel_names or description.channels),
            description.labels,
            training_cases,
            FILE_ENDING,
            description.regions_class_order,
            dataset_name=description.folder_name,
            reference=description.reference,
            description=description.description,
            license=description.licence,
            converted_by="nnunet-kd convert",
        )
        content = (Path(temporary) / "dataset.json").read_bytes()
    write_atomically(folder / "dataset.json", lambda file: file.write(content))


def _write_skipped(folder: Path, bad: list[BadCase], looked_at: set[str]) -> None:
    """``skipped.csv`` of this run, and of earlier ones over other cases; none if nothing was skipped."""
    path, header = folder / SKIPPED, ["case", "why", "found_in"]
    rows = [[case.name, "; ".join(case.problems), str(case.folder)] for case in bad]
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows += [row for row in list(csv.reader(file))[1:] if row and row[0] not in looked_at]
    if rows:
        write_csv(path, header, sorted(rows))
    else:
        path.unlink(missing_ok=True)


def _warnings(
    checked: _Checked,
    usable: list[Case],
    options: ConversionOptions,
    folder: Path,
    description: DatasetDescription,
    journal: Journal,
) -> list[str]:
    warnings = []
    if checked.empty:
        warnings.append(
            f"{counted(len(checked.empty), 'case')} with an empty segmentation: {some(sorted(checked.empty))}"
        )
    if checked.harmonised:
        warnings.append(
            f"{counted(checked.harmonised, 'file')} with headers that differ from {description.reference_channel}'s by less than "
            "the tolerance; given exactly its header"
        )
    if options.link and not options.dry_run:
        places = [folder / place for case in usable for place in targets(case, description).values()]
        files = sum(not place.is_symlink() for place in places)
        if files:
            warnings.append(f"{files} of {counted(len(places), 'file')} had to be changed or compressed: no links")
    sides: dict[str, set[bool]] = defaultdict(set, journal.sides())  # cases of earlier runs count, too
    for case in usable:
        sides[case.patient].add(case.label is None)
    both = {patient for patient, side in sides.items() if len(side) == 2}
    if both:
        warnings.append(
            f"{counted(len(both), 'patient')} with training and test cases: {some(sorted(both))}; do not report results on these"
        )
    return warnings
