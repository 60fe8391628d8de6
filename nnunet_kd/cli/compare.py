"""``nnunet-kd compare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    from nnunet_kd.evaluation.folders import evaluate_folder, read_dataset_json, read_labels, reader_for
    from nnunet_kd.evaluation.metrics import MetricOptions
    from nnunet_kd.evaluation.profile_tables import read_profiles
    from nnunet_kd.evaluation.report import ReportInput, write_report
    from nnunet_kd.evaluation.runs import (
        attach_runs,
        find_warnings,
        fold_cases,
        nnunet_folder,
        parse_method,
        read_splits,
    )
    from nnunet_kd.evaluation.tables import comparison_tables, joined, overall_table
    from nnunet_kd.files import write_atomically

    profiles = read_profiles(profile) if profile is not None else {}
    found = attach_runs([parse_method(text, fold) for text in methods], model or [], fold)
    names = [method.name for method in found]
    teacher = teacher or ("teacher" if "teacher" in names else None)
    focus = focus or next((name for name in reversed(names) if name not in (reference, teacher)), names[-1])
    _check_names(names, {"--reference": reference, "--teacher": teacher, "--focus": focus})

    dataset = next((method.run.dataset_name for method in found if method.run is not None), None)
    raw, preprocessed = (
        nnunet_folder(variable, dataset) if dataset else None for variable in ("nnUNet_raw", "nnUNet_preprocessed")
    )
    segmentations = ground_truth or (raw / "labelsTr" if raw is not None else None)
    if segmentations is None:
        raise DataError("the reference segmentations are not known. Give their folder with --ground-truth.")
    labels_from = find_dataset_json(dataset_json, *(method.predictions for method in found), segmentations)
    labels = read_labels(read_dataset_json(labels_from), labels_from)
    if splits is None and preprocessed is not None and (preprocessed / "splits_final.json").is_file():
        splits = preprocessed / "splits_final.json"
    known_splits = read_splits(splits) if splits is not None else None
    fold = fold or _common_fold(found)
    if fold is not None and known_splits is None:
        raise DataError(
            f"which cases belong to fold {fold} is not known. Give nnU-Net's splits_final.json with --splits."
        )
    cases = fold_cases(known_splits, fold, "val") if known_splits is not None and fold is not None else None
    image_of = _image_finder(images or (raw / "imagesTr" if raw is not None else None), channel, labels.file_ending)

    options = MetricOptions(nsd_tolerance, empty.value, hd95_penalty)
    evaluations = {
        method.name: evaluate_folder(
            method.predictions, segmentations, labels_from, options, cases, workers or default_workers(), method.name
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
    example = segmentations / (result.cases[0] + labels.file_ending)
    reader = reader_for(read_dataset_json(labels_from), example)
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


def _check_names(names: Sequence[str], roles: dict[str, str | None]) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"two methods have the same name: {', '.join(names)}. Give each its own.")
    for option, name in roles.items():
        if name is not None and name not in names:
            raise DataError(f"{option} {name!r} is not among the methods: {', '.join(names)}.")


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


def _image_finder(folder: Path | None, channel: int, ending: str) -> Callable[[str], Path] | None:
    """A case's image file; the first look shows whether the folder is right, before anything is measured."""
    if folder is None:
        return None
    suffix = f"_{channel:04d}{ending}"
    if not folder.is_dir() or not any(path.name.endswith(suffix) for path in folder.iterdir()):
        raise DataError(f"the image folder {folder} has no *{suffix} file. Give another --images or --channel.")
    return lambda case: folder / f"{case}{suffix}"
