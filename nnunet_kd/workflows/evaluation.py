"""An evaluation from end to end: one folder of predictions measured against its references, and written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.evaluation.calibration import Calibration, evaluate_probabilities
from nnunet_kd.evaluation.folders import evaluate_folder
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.references import find_dataset_json
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.evaluation.runs import fold_cases, read_splits
from nnunet_kd.nnunet.folds import parse_fold
from nnunet_kd.system.files import check_output_file, why_no_folder
from nnunet_kd.system.processes import worker_pool


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and how.

    Attributes:
        predictions, reference: folders with one segmentation per case.
        dataset_json: nnU-Net's; ``None``: beside predictions or reference.
        splits, fold: nnU-Net's ``splits_final.json`` and the fold whose validation cases count; ``None``: every case.
        metrics: how to measure.
        probabilities: whether to measure these, too.
        output: of the files, without ending; ``None``: ``evaluation`` beside the predictions.
        workers: processes.
    """

    predictions: Path
    reference: Path
    dataset_json: Path | None = None
    splits: Path | None = None
    fold: str | None = None
    metrics: MetricOptions = field(default_factory=MetricOptions)
    probabilities: bool = False
    output: Path | None = None
    workers: int = 1


@dataclass(frozen=True)
class Evaluated:
    """Values, and where they were written; ``calibration`` is ``None`` where probabilities were not asked for."""

    evaluation: Evaluation
    calibration: Calibration | None
    written: tuple[Path, ...]


def evaluate_predictions(request: EvaluationRequest) -> Evaluated:
    """Measure every case, and write the values as CSV and JSON.

    Raises:
        SettingsError, MissingRequirement: the options, or the output's place; told before anything is measured.
        DataError: folders or files; lists every problem of every file.
    """
    predictions, reference = request.predictions, request.reference
    cases = _cases(request)
    for kind, folder in (("prediction", predictions), ("reference", reference)):
        if not folder.is_dir():
            raise DataError(
                f"the {kind} folder {folder} {why_no_folder(folder)}. Give a folder with one file per case."
            )
    target = request.output or predictions / "evaluation"
    check_output_file(target.with_name(f"{target.name}.csv"))
    labels_from = find_dataset_json(request.dataset_json, predictions, reference)
    calibration = None
    with worker_pool(request.workers) as pool:
        if request.probabilities:  # first: files may be missing, and surface distances take much longer
            calibration = evaluate_probabilities(predictions, reference, labels_from, cases, pool)
        evaluation = evaluate_folder(predictions, reference, labels_from, request.metrics, cases, pool)
    written = [target.with_name(f"{target.name}.{ending}") for ending in ("csv", "json")]
    evaluation.write_csv(written[0])
    evaluation.write_json(written[1])
    if calibration is not None:
        written.append(target.with_name(f"{target.name}_probabilities.csv"))
        calibration.write_csv(written[-1])
    return Evaluated(evaluation, calibration, tuple(written))


def _cases(request: EvaluationRequest) -> set[str] | None:
    if (request.splits is None) != (request.fold is None):
        raise SettingsError("--splits and -f belong together: give both, or neither to evaluate every case.")
    if request.splits is None or request.fold is None:
        return None
    fold = str(parse_fold(request.fold))
    return fold_cases(read_splits(request.splits), fold, "val")
