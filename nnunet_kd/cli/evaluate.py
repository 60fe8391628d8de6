"""``nnunet-kd evaluate``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.system.counts import counted

if TYPE_CHECKING:
    from nnunet_kd.workflows.evaluation import Evaluated


class Empty(str, enum.Enum):
    """What both masks empty counts as."""

    nan = "nan"
    perfect = "perfect"


Tolerance = Annotated[float, option("nsd-tolerance", "NSD: mm within which surfaces agree.", min=0.0)]
EmptyOption = Annotated[Empty, option("empty", "Both masks empty: left out of means (nan), or a score of 1 (perfect).")]
Penalty = Annotated[
    float | None,
    option("hd95-penalty", "HD95 in mm where one mask is empty; default: left out and counted.", min=0.0),
]
DatasetJson = Annotated[
    Path | None,
    option("dataset-json", "Labels and file ending; default: beside predictions or reference."),
]
Splits = Annotated[Path | None, option("splits", "nnU-Net's splits_final.json, with -f: only that fold's cases.")]
Workers = Annotated[
    int | None,
    option("workers", "Processes; default: as nnU-Net (nnUNet_def_n_proc).", min=1),
]


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted segmentations.", metavar="PRED")],
    reference: Annotated[Path, typer.Argument(help="Folder of reference segmentations.", metavar="GT")],
    dataset_json: DatasetJson = None,
    splits: Splits = None,
    fold: Annotated[str | None, option("folds", "With --splits: evaluate this fold's validation cases.")] = None,
    nsd_tolerance: Tolerance = 1.0,
    empty: EmptyOption = Empty.nan,
    hd95_penalty: Penalty = None,
    output: Annotated[Path | None, option("output", "Files without ending; default: PRED/evaluation.")] = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Also Brier score and calibration error, from --save_probabilities files."
        ),
    ] = False,
    workers: Workers = None,
) -> None:
    """Dice, HD95, NSD, volume difference and lesion F1, per case and class, as CSV and JSON."""
    from nnunet_kd.evaluation.metrics import MetricOptions
    from nnunet_kd.nnunet.datasets import default_processes
    from nnunet_kd.workflows.evaluation import EvaluationRequest, evaluate_predictions

    request = EvaluationRequest(
        predictions=predictions,
        reference=reference,
        dataset_json=dataset_json,
        splits=splits,
        fold=fold,
        metrics=MetricOptions(nsd_tolerance, empty.value, hd95_penalty),
        probabilities=probabilities,
        output=output,
        workers=workers or default_processes(),
    )
    _print(evaluate_predictions(request))


def _print(found: Evaluated) -> None:
    from nnunet_kd.evaluation.calibration import MEASURES
    from nnunet_kd.evaluation.metrics import METRICS
    from nnunet_kd.evaluation.results import OVERALL
    from nnunet_kd.evaluation.tables import mean_and_error

    evaluation, calibration = found.evaluation, found.calibration
    table = Table(
        "class",
        *(metric.heading for metric in METRICS),
        title=f"{counted(len(evaluation.cases), 'case')}, mean ± standard error",
    )
    for class_name in (OVERALL, *evaluation.classes):
        cells = [mean_and_error(evaluation.summary(metric.name, class_name), metric) for metric in METRICS]
        table.add_row(class_name, *cells)
    console = Console()
    console.print(table)
    for class_name in evaluation.classes:
        counts = {name.replace("_", " "): n for name, n in evaluation.empty_counts(class_name).items() if n}
        if counts:
            console.print(
                f"{class_name}: " + ", ".join(f"{name} in {counted(n, 'case')}" for name, n in counts.items())
            )
    if calibration is not None:
        table = Table("class", *(measure.heading for measure in MEASURES), title="Probabilities, mean ± standard error")
        for name in (None, *calibration.classes):
            cells = [mean_and_error(calibration.summary(measure.name, name), measure) for measure in MEASURES]
            table.add_row(name or OVERALL, *cells)
        console.print(table)
    for warning in evaluation.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True, highlight=False)
    console.print(f"Written: {', '.join(map(str, found.written))}", soft_wrap=True, highlight=False)
