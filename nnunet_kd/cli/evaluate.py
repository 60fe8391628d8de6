"""``nnunet-kd evaluate``."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.cli.training_options import check_fold
from nnunet_kd.errors import DataError, MissingRequirement, SettingsError
from nnunet_kd.system.counts import counted


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
Splits = Annotated[Path | None, option("splits", "nnU-Net's splits_final.json, with --fold: only that fold's cases.")]
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
    from nnunet_kd.evaluation.calibration import MEASURES, evaluate_probabilities
    from nnunet_kd.evaluation.folders import evaluate_folder
    from nnunet_kd.evaluation.metrics import METRICS, MetricOptions
    from nnunet_kd.evaluation.references import find_dataset_json
    from nnunet_kd.evaluation.results import OVERALL
    from nnunet_kd.evaluation.runs import fold_cases, read_splits
    from nnunet_kd.evaluation.tables import mean_and_error
    from nnunet_kd.nnunet.datasets import default_processes
    from nnunet_kd.system.processes import worker_pool

    if (splits is None) != (fold is None):
        raise SettingsError("--splits and --fold belong together: give both, or neither to evaluate every case.")
    if fold is not None:
        check_fold(fold)
    cases = fold_cases(read_splits(splits), fold, "val") if splits is not None and fold is not None else None
    for kind, folder in (("prediction", predictions), ("reference", reference)):
        if not folder.is_dir():
            raise DataError(f"the {kind} folder {folder} does not exist. Give a folder with one file per case.")
    target = output or predictions / "evaluation"
    if not target.parent.is_dir():
        raise SettingsError(f"--output {target}: the folder {target.parent} does not exist. Make it first.")
    if not os.access(target.parent, os.W_OK):
        raise MissingRequirement(f"the folder {target.parent} cannot be written to. Give another place with --output.")
    labels_from = find_dataset_json(dataset_json, predictions, reference)
    options = MetricOptions(nsd_tolerance, empty.value, hd95_penalty)
    with worker_pool(workers or default_processes()) as pool:
        evaluation = evaluate_folder(predictions, reference, labels_from, options, cases, pool)
        calibration = (
            evaluate_probabilities(predictions, reference, labels_from, cases, pool) if probabilities else None
        )
    csv_path, json_path = (target.with_name(f"{target.name}.{ending}") for ending in ("csv", "json"))
    evaluation.write_csv(csv_path)
    evaluation.write_json(json_path)

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
    written = [csv_path, json_path]
    if calibration is not None:
        table = Table("class", *(measure.heading for measure in MEASURES), title="Probabilities, mean ± standard error")
        for name in (None, *calibration.classes):
            cells = [mean_and_error(calibration.summary(measure.name, name), measure) for measure in MEASURES]
            table.add_row(name or OVERALL, *cells)
        console.print(table)
        written.append(target.with_name(f"{target.name}_probabilities.csv"))
        calibration.write_csv(written[-1])
    for warning in evaluation.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True, highlight=False)
    console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True, highlight=False)
