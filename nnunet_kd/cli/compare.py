"""``nnunet-kd compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnunet_kd.cli.comparison_output import check_output, write_and_show
from nnunet_kd.cli.evaluate import (
    DatasetJson,
    Empty,
    EmptyOption,
    Penalty,
    Splits,
    Tolerance,
    Workers,
    default_workers,
)
from nnunet_kd.cli.options import option
from nnunet_kd.errors import DataError

if TYPE_CHECKING:
    from nnunet_kd.evaluation.metrics import MetricOptions
    from nnunet_kd.evaluation.references import References
    from nnunet_kd.evaluation.results import Evaluation
    from nnunet_kd.evaluation.runs import Method

Rows = Mapping[str, Sequence[Sequence[tuple[Path, str | None]]]]
"""A method's predictions: for every seed, every fold's folder with the fold; one of each where there is no sweep."""


def compare(
    reference: Annotated[
        str, option("reference", "The method that others are compared with: the undistilled student.")
    ],
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
    seeds: Annotated[bool, option("seeds", "With --sweep: one row per seed, not their average.")] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="NAME=MODEL, repeatable: the model folder behind predictions that do not lie in it."
        ),
    ] = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option("--ground-truth", help="Reference segmentations; default: the dataset's in nnUNet_raw."),
    ] = None,
    images: Annotated[
        Path | None, option("input", "Image folder for pictures; default: the dataset's imagesTr in nnUNet_raw.")
    ] = None,
    channel: Annotated[int, typer.Option(min=0, help="Image channel for pictures.")] = 0,
    teacher: Annotated[
        str | None, option("teacher", "The method that the gap is measured to; default: `teacher` if there is one.")
    ] = None,
    focus: Annotated[
        str | None, typer.Option(help="The method whose best and worst cases are shown; default: the last.")
    ] = None,
    dataset_json: DatasetJson = None,
    splits: Splits = None,
    fold: Annotated[str | None, option("folds", "Fold whose validation cases are compared.")] = None,
    profile: Annotated[Path | None, typer.Option(help="JSON of `nnunet-kd profile`, with the same names.")] = None,
    nsd_tolerance: Tolerance = 1.0,
    empty: EmptyOption = Empty.nan,
    hd95_penalty: Penalty = None,
    output: Annotated[Path, option("output", "Folder for tables and report.html.")] = Path("comparison"),
    workers: Workers = None,
) -> None:
    """Tables with means, errors and significance, and a report.html that opens offline."""
    from nnunet_kd.evaluation import comparison as comparing
    from nnunet_kd.evaluation.costs.tables import read_profiles
    from nnunet_kd.evaluation.metrics import MetricOptions
    from nnunet_kd.evaluation.pooling import average_seeds, partly_defined
    from nnunet_kd.evaluation.references import find_references
    from nnunet_kd.evaluation.report import Pictures, ReportInput
    from nnunet_kd.evaluation.runs import attach_runs, find_warnings, method_name, parse_method
    from nnunet_kd.evaluation.seeds import Trainings
    from nnunet_kd.workflows.sweep.finished import find_finished

    if (sweep is None) != bool(methods) or (sweep is not None and model):
        raise DataError("give methods as NAME=DIR (with --model, if need be), or one --sweep FOLDER; not both.")
    if (seeds or variants) and sweep is None:
        raise DataError("--seeds and --variants choose what is shown of a sweep; give them with --sweep.")
    chosen = None if variants is None else [name.strip() for name in variants.split(",")]
    swept = find_finished(sweep, fold, chosen) if sweep is not None else None
    rows: Rows = swept.methods(reference, seeds) if swept is not None else {}
    names = list(rows) if swept is not None else [method_name(text) for text in methods or []]
    teacher = teacher or comparing.teacher_among(names)
    focus = focus or next((name for name in reversed(names) if name not in (reference, teacher)), names[-1])
    comparing.check_roles(names, reference, teacher)
    if focus not in names:
        raise DataError(f"--focus {focus!r} is not among the methods: {', '.join(names)}.")
    check_output(output)
    profiles = read_profiles(profile) if profile is not None else {}

    if swept is not None:
        found = swept.described(rows)
    else:
        found = attach_runs([parse_method(text, fold) for text in methods or []], model or [], fold)
        fold = fold or _common_fold(found)
        rows = {method.name: [[(method.predictions, fold)]] for method in found}
    references = find_references(found, ground_truth, dataset_json, splits)
    pairs = [pair for place in _places(rows) for pair in references.pairs(*place)]
    image_of = references.image_finder(images, channel, sorted({pair.case for pair in pairs}))

    options = MetricOptions(nsd_tolerance, empty.value, hd95_penalty)
    by_method = _measure(rows, references, options, workers or default_workers())
    result = comparing.compare(
        {name: average_seeds(by_seed) for name, by_seed in by_method.items()}, reference, teacher
    )
    trainings: Trainings | None = None
    if swept is None:
        training, facts = None, {}
        warnings = find_warnings(found, result.cases, references.splits)
    else:
        training, facts = swept.training_table(), swept.facts(seeds)
        warnings = [*swept.warnings(references.splits), *partly_defined(by_method)]
        fold = ", ".join(swept.folds) + (" (cases pooled)" if len(swept.folds) > 1 else "")
        if not seeds:  # else they are rows of their own
            trained = {name: swept.by_seed(name, evaluations) for name, evaluations in by_method.items()}
            trainings = Trainings(swept.seeds, trained, reference)
    given = ReportInput(
        comparison=result,
        methods=found,
        pictures=Pictures(references.labels, references.reader(pairs[0].reference), image_of, focus),
        fold=fold,
        warnings=warnings,
        profiles=profiles,
        facts=facts,
        training=training,
        by_training=trainings.tables() if trainings is not None else [],
    )
    write_and_show(given, trainings, output)


def _places(rows: Rows) -> list[tuple[Path, str | None]]:
    """Every folder of predictions with its fold, once."""
    return list(dict.fromkeys(part for by_seed in rows.values() for parts in by_seed for part in parts))


def _measure(rows: Rows, references: References, options: MetricOptions, workers: int) -> dict[str, list[Evaluation]]:
    """By method, every seed's evaluation with its folds pooled."""
    from nnunet_kd.evaluation.pooling import pool_folds
    from nnunet_kd.system.processes import worker_pool

    titles = {part: name for name, by_seed in rows.items() for parts in by_seed for part in parts}
    with worker_pool(workers) as pool:
        measured = {place: references.evaluate(*place, options, pool, titles[place]) for place in _places(rows)}
    return {
        name: [pool_folds([measured[part] for part in parts]) for parts in by_seed] for name, by_seed in rows.items()
    }


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
