"""``nnunet-kd compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nnunet_kd.cli.comparison_output import GroupRegex, write_and_show
from nnunet_kd.cli.evaluate import (
    DatasetJson,
    Empty,
    EmptyOption,
    Penalty,
    Splits,
    Tolerance,
    Workers,
)
from nnunet_kd.cli.options import option
from nnunet_kd.nnunet.folds import parse_fold
from nnunet_kd.system.files import check_output


def compare(
    reference: Annotated[
        str, option("reference", "The method that others are compared with, for example inherited or student.")
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
        option("model", "NAME=MODEL, repeatable: the model folder behind predictions that do not lie in it."),
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
    group_regex: GroupRegex = None,
    nsd_tolerance: Tolerance = 1.0,
    empty: EmptyOption = Empty.nan,
    hd95_penalty: Penalty = None,
    output: Annotated[Path, option("output", "Folder for tables and report.html.")] = Path("comparison"),
    workers: Workers = None,
) -> None:
    """Tables with means, errors and significance, and a report.html that opens offline."""
    from nnunet_kd.datasets.splits import groups_where_found
    from nnunet_kd.evaluation.metrics import MetricOptions
    from nnunet_kd.nnunet.datasets import default_processes
    from nnunet_kd.workflows.comparison import ComparisonRequest, compare_predictions

    if fold is not None:
        parse_fold(fold)
    check_output(output)
    if group_regex is not None:
        groups_where_found([], group_regex)
    request = ComparisonRequest(
        reference=reference,
        methods=tuple(methods or ()),
        models=tuple(model or ()),
        sweep=sweep,
        variants=None if variants is None else tuple(name.strip() for name in variants.split(",")),
        seeds_apart=seeds,
        teacher=teacher,
        focus=focus,
        fold=fold,
        ground_truth=ground_truth,
        dataset_json=dataset_json,
        splits=splits,
        images=images,
        channel=channel,
        profiles=profile,
        metrics=MetricOptions(nsd_tolerance, empty.value, hd95_penalty),
        group_regex=group_regex,
        workers=workers or default_processes(),
    )
    write_and_show(compare_predictions(request), output)
