"""``nnunet-kd compare``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import rich.table
import typer
from rich.console import Console
from rich.markup import escape

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
    from nnunet_kd.evaluation.runs import Method, Split
    from nnunet_kd.evaluation.tables import Table

Rows = Mapping[str, Sequence[Sequence[tuple[Path, str | None]]]]
"""A method's predictions: for every seed, every fold's folder with the fold; one of each where there is no sweep."""


def compare(
    reference: Annotated[str, typer.Option(help="The method that others are compared with: the undistilled student.")],
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045  typer on Python 3.10
        typer.Argument(help="NAME=DIR: predictions, or a model folder with them.", metavar="NAME=DIR..."),
    ] = None,
    sweep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of `nnunet-kd sweep`, in place of NAME=DIR: one method per variant, folds pooled."),
    ] = None,
    variants: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="With --sweep: only these, in this order, such as student,dcd; default: all with a finished run."
        ),
    ] = None,
    seeds: Annotated[bool, typer.Option("--seeds", help="With --sweep: one row per seed, not their average.")] = False,
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
    from nnunet_kd.evaluation.pooling import average_seeds, partly_defined, pool_folds
    from nnunet_kd.evaluation.profile_tables import read_profiles
    from nnunet_kd.evaluation.report import ReportInput, write_report
    from nnunet_kd.evaluation.runs import (
        attach_runs,
        find_warnings,
        method_name,
        nnunet_folder,
        parse_method,
        read_splits,
    )
    from nnunet_kd.evaluation.seeds import Trainings
    from nnunet_kd.evaluation.tables import comparison_tables, joined, overall_table
    from nnunet_kd.files import write_atomically
    from nnunet_kd.parallel import worker_pool
    from nnunet_kd.sweep.finished import find_finished

    if (sweep is None) != bool(methods) or (sweep is not None and model):
        raise DataError("give methods as NAME=DIR (with --model, if need be), or one --sweep FOLDER; not both.")
    if (seeds or variants) and sweep is None:
        raise DataError("--seeds and --variants choose what is shown of a sweep; give them with --sweep.")
    chosen = None if variants is None else [name.strip() for name in variants.split(",")]
    swept = find_finished(sweep, fold, chosen) if sweep is not None else None
    rows: Rows = swept.methods(reference, seeds) if swept is not None else {}
    names = list(rows) if swept is not None else [method_name(text) for text in methods or []]
    teacher = teacher or ("teacher" if "teacher" in names else None)
    focus = focus or next((name for name in reversed(names) if name not in (reference, teacher)), names[-1])
    comparing.check_roles(names, reference, teacher)
    if focus not in names:
        raise DataError(f"--focus {focus!r} is not among the methods: {', '.join(names)}.")
    _check_output(output)
    profiles = read_profiles(profile) if profile is not None else {}
    if swept is not None:
        found = swept.described(rows)
    else:
        found = attach_runs([parse_method(text, fold) for text in methods or []], model or [], fold)

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
    if swept is None:
        fold = fold or _common_fold(found)
        rows = {method.name: [[(method.predictions, fold)]] for method in found}
    places = dict.fromkeys(part for by_seed in rows.values() for parts in by_seed for part in parts)
    cases = {its_fold: _cases(known_splits, its_fold) for _, its_fold in places}
    pairs = [pair for place, its in places for pair in find_cases(place, segmentations, labels.file_ending, cases[its])]
    suffix = f"_{channel:04d}{labels.file_ending}"
    image_of = _image_finder(images, raw, sorted({pair.case for pair in pairs}), suffix)

    options = MetricOptions(nsd_tolerance, empty.value, hd95_penalty)
    titles = {part: name for name, by_seed in rows.items() for parts in by_seed for part in parts}
    with worker_pool(workers or default_workers()) as pool:
        measured = {
            place: evaluate_folder(place[0], segmentations, labels_from, options, cases[place[1]], pool, titles[place])
            for place in places
        }
    by_method = {
        name: [pool_folds([measured[part] for part in parts]) for parts in by_seed] for name, by_seed in rows.items()
    }
    evaluations = {name: average_seeds(by_seed) for name, by_seed in by_method.items()}
    result = comparing.compare(evaluations, reference, teacher)

    output.mkdir(parents=True, exist_ok=True)
    result.write_csv(output / "comparison.csv")
    result.write_cases_csv(output / "cases.csv")
    by_training: list[Table] = []
    if swept is not None and len(swept.seeds) > 1 and not seeds:
        trainings = Trainings(swept.seeds, by_method, reference)
        trainings.write_cases_csv(output / "cases_by_seed.csv")
        by_training = trainings.tables()
    training = swept.training_table() if swept is not None else None
    tables = [*comparison_tables(result), *by_training, *([training] if training is not None else [])]
    for name, form in (("tables.md", "markdown"), ("tables.tex", "latex")):
        text = joined(tables, form).encode()
        write_atomically(output / name, lambda file, text=text: file.write(text))  # type: ignore[misc]
    if swept is None:
        warnings, facts = find_warnings(found, result.cases, known_splits), {}
    else:
        warnings, facts = [*swept.warnings(known_splits), *partly_defined(by_method)], swept.facts(seeds)
        fold = ", ".join(swept.folds) + (" (cases pooled)" if len(swept.folds) > 1 else "")
    reader = reader_for(read_dataset_json(labels_from), pairs[0].reference)
    given = ReportInput(
        result, found, labels, reader, image_of, focus, fold, warnings, profiles, facts, training, by_training
    )
    write_report(given, output / "report.html")
    written = [str(output / "report.html"), "tables.md", "tables.tex", "comparison.csv", "cases.csv"]
    if by_training:
        written.append("cases_by_seed.csv")
    _print([overall_table(result), *by_training[:1]], facts, warnings, written)


def _print(tables: list[Table], facts: Mapping[str, str], warnings: list[str], written: list[str]) -> None:
    console = Console()
    for table in tables:
        shown = rich.table.Table(*table.header, title=table.title, caption=table.note)
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row))
        console.print(shown)
    for name, fact in facts.items():
        console.print(f"{name}: {escape(fact)}", soft_wrap=True, highlight=False)
    for warning in warnings:
        console.print(f"[bold]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    console.print(f"Written: {', '.join(written)}", soft_wrap=True)


def _check_output(folder: Path) -> None:
    """Whether a folder can be made or written to, known before hours of measuring."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise DataError(f"--output {folder}: {existing} is no folder that can be written to. Choose another place.")


def _cases(splits: Sequence[Split] | None, fold: str | None) -> set[str] | None:
    """A fold's validation cases; ``None``: all that are there."""
    from nnunet_kd.evaluation.runs import fold_cases

    if splits is None:
        if fold in (None, "all"):
            return None
        raise DataError(
            f"which cases belong to fold {fold} is not known. Give nnU-Net's splits_final.json with --splits."
        )
    return None if fold is None else fold_cases(splits, fold, "val")


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
