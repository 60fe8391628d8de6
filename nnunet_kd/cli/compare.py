"""``nnunet-kd compare``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_kd.cli.evaluate import (
    DatasetJson,
    Empty,
    EmptyOption,
    Penalty,
    Splits,
    Tolerance,
    Workers,
    default_workers,
    find_dataset_json,
)
from nnunet_kd.errors import DataError

if TYPE_CHECKING:
    from nnunet_kd.evaluation.runs import Method


def compare(
    methods: Annotated[
        list[str], typer.Argument(help="NAME=DIR: predictions, or a model folder with them.", metavar="NAME=DIR...")
    ],
    reference: Annotated[str, typer.Option(help="The method that others are compared with: the undistilled student.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=MODEL, repeatable: the model folder behind predictions that do not lie in it."),
    ] = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option("--ground-truth", help="Reference segmentations; default: the dataset's in nnUNet_raw."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Image folder for pictures; default: the dataset's imagesTr in nnUNet_raw.")
    ] = None,
    channel: Annotated[int, typer.Option(min=0, help="Image channel for pictures.")] = 0,
    teacher: Annotated[
        str | None, typer.Option(help="The method that the gap is measured to; default: `teacher` if there is one.")
    ] = None,
    focus: Annotated[
        str | None, typer.Option(help="The method whose best and worst cases are shown; default: the last.")
    ] = None,
    dataset_json: DatasetJson = None,
    splits: Splits = None,
    fold: Annotated[str | None, typer.Option(help="Fold whose validation cases are compared.")] = None,
    profile: Annotated[Path | None, typer.Option(help="JSON of `nnunet-kd profile`, with the same names.")] = None,
    nsd_tolerance: Tolerance = 1.0,
    empty: EmptyOption = Empty.nan,
    hd95_penalty: Penalty = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and report.html.")] = Path(
        "comparison"
    ),
    workers: Workers = None,
) -> None:
    """Tables with means, errors and significance, and a report.html that opens offline."""
    from nnunet_kd.evaluation import comparison as comparing
    from nnunet_kd.evaluation.folders import evaluate_folder, find_cases, read_dataset_json, read_labels, reader_for
    from nnunet_kd.evaluation.metrics import MetricOptions
    from nnunet_kd.evaluation.profile_tables import read_profiles
    from nnunet_kd.evaluation.report import ReportInput, write_report
    from nnunet_kd.evaluation.runs import (
        attach_runs,
        find_warnings,
        fold_cases,
        method_name,
        nnunet_folder,
        parse_method,
        read_splits,
    )
    from nnunet_kd.evaluation.tables import comparison_tables, joined, overall_table
    from nnunet_kd.files import write_atomically
    from nnunet_kd.parallel import worker_pool

    names = [method_name(text) for text in methods]
    teacher = teacher or ("teacher" if "teacher" in names else None)
    focus = focus or next((name for name in reversed(names) if name not in (reference, teacher)), names[-1])
    comparing.check_roles(names, reference, teacher)
    if focus not in names:
        raise DataError(f"--focus {focus!r} is not among the methods: {', '.join(names)}.")
    _check_output(output)
    profiles = read_profiles(profile) if profile is not None else {}
    found = attach_runs([parse_method(text, fold) for text in methods], model or [], fold)

    dataset = next((method.run.dataset_name for method in found if method.run is not None), None)
    raw, preprocessed = (
        nnunet_folder(variable, dataset) if dataset else None for variable in ("nnUNet_raw", "nnUNet_preprocessed")
    )
    segmentations = ground_truth or (raw / "labelsTr" if raw is not None else None)
    if segmentations is None or not segmentations.is_dir():
        where = "are not known" if segmentations is None else f"are not in {segmentations}, which does not exist"
        raise DataError(f"the reference segmentations {where}. Give their folder with --ground-truth.")
    labels_from = find_dataset_json(dataset_json, *(method.predictions for method in found), segmentations)
    labels = read_labels(read_dataset_json(labels_from), labels_from)
    if splits is None and preprocessed is not None and (preprocessed / "splits_final.json").is_file():
        splits = preprocessed / "splits_final.json"
    known_splits = read_splits(splits) if splits is not None else None
    fold = fold or _common_fold(found)
    if fold not in (None, "all") and known_splits is None:
        raise DataError(
            f"which cases belong to fold {fold} is not known. Give nnU-Net's splits_final.json with --splits."
        )
    cases = fold_cases(known_splits, fold, "val") if known_splits is not None and fold is not None else None
    for method in found:
        pairs = find_cases(method.predictions, segmentations, labels.file_ending, cases)
    suffix = f"_{channel:04d}{labels.file_ending}"
    image_of = _image_finder(images, raw, [pair.case for pair in pairs], suffix)

    options = MetricOptions(nsd_tolerance, empty.value, hd95_penalty)
    with worker_pool(workers or default_workers()) as pool:
        evaluations = {
            method.name: evaluate_folder(
                method.predictions, segmentations, labels_from, options, cases, pool, method.name
            )
            for method in found
        }
    result = comparing.compare(evaluations, reference, teacher)

    output.mkdir(parents=True, exist_ok=True)
    result.write_csv(output / "comparison.csv")
    result.write_cases_csv(output / "cases.csv")
    tables = comparison_tables(result)
    for name, form in (("tables.md", "markdown"), ("tables.tex", "latex")):
        text = joined(tables, form).encode()
        write_atomically(output / name, lambda file, text=text: file.write(text))  # type: ignore[misc]
    warnings = find_warnings(found, result.cases, known_splits)
    reader = reader_for(read_dataset_json(labels_from), pairs[0].reference)
    given = ReportInput(result, found, labels, reader, image_of, focus, fold, warnings, profiles)
    write_report(given, output / "report.html")

    console = Console()
    overall = overall_table(result)
    shown = Table(*overall.header, title=overall.title, caption=overall.note)
    for row in overall.rows:
        shown.add_row(*(escape(cell) for cell in row))
    console.print(shown)
    for warning in warnings:
        console.print(f"[bold]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    console.print(
        f"Written: {output / 'report.html'}, tables.md, tables.tex, comparison.csv, cases.csv", soft_wrap=True
    )


def _check_output(folder: Path) -> None:
    """Whether a folder can be made or written to, known before hours of measuring."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise DataError(f"--output {folder}: {existing} is no folder that can be written to. Choose another place.")


def _common_fold(methods: Sequence[Method]) -> str | None:
    """The fold whose validation folders all methods are; ``None`` if they are something else, such as a test set."""
    folds: set[Any] = {
        method.run.fold if method.run is not None and method.predictions.name == "validation" else None
        for method in methods
    }
    if len(folds - {None}) > 1:
        listed = ", ".join(f"{m.name} {m.run.fold}" for m in methods if m.run is not None)
        raise DataError(f"the validation folders are of different folds ({listed}). Compare methods of the same fold.")
    return next(iter(folds)) if len(folds) == 1 else None


def _image_finder(
    given: Path | None, raw: Path | None, cases: Sequence[str], suffix: str
) -> Callable[[str], Path] | None:
    """A case's image file; ``None`` if no folder was given and the dataset's own do not hold all cases.

    Raises:
        DataError: the folder given lacks cases; names them.
    """
    if given is not None:
        missing = [f"{case}{suffix}" for case in cases if not (given / f"{case}{suffix}").is_file()]
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise DataError(f"{given} lacks {', '.join(missing[:8])}{more}. Give another --images or --channel.")
        return partial(_image_in, given, suffix)
    for folder in (raw / "imagesTr", raw / "imagesTs") if raw is not None else ():
        if all((folder / f"{case}{suffix}").is_file() for case in cases):
            return partial(_image_in, folder, suffix)
    return None


def _image_in(folder: Path, suffix: str, case: str) -> Path:
    return folder / f"{case}{suffix}"
