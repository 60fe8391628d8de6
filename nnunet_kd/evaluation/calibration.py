"""How far predicted probabilities can be trusted: Brier score and expected calibration error.

They are read from the ``.npz`` files that ``--save_probabilities`` writes beside the segmentations.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.folders import find_plans
from nnunet_kd.evaluation.labels import LabelSet, read_dataset_json, read_labels
from nnunet_kd.evaluation.metrics import Metric
from nnunet_kd.evaluation.pairs import CasePair, find_pairs
from nnunet_kd.evaluation.results import OVERALL, Summary, Values, csv_number, summarise
from nnunet_kd.evaluation.tables import Table, mean_and_error
from nnunet_kd.nnunet.scoring import mask_of
from nnunet_kd.system.counts import counted, some
from nnunet_kd.system.files import write_csv
from nnunet_kd.system.processes import run_all
from nnunet_kd.volumes.reading import dataset_reader, read_segmentation, whole_numbers

BINS = 15
"""Of equal width, as in Guo et al., On Calibration of Modern Neural Networks, 2017."""
DECIDED = 0.01
"""A probability within this distance of 0 or 1 counts as decided."""
MEASURES = (
    Metric("brier", "Brier score", "%", -1),
    Metric("ece", "Calibration error", "%", -1),
    Metric("undecided", "Undecided voxels", "%", 0),
)
"""``undecided``: the share of voxels whose probability is further than :data:`DECIDED` from 0 and 1."""


@dataclass(frozen=True)
class Calibration:
    """Of one folder's probabilities.

    Attributes:
        cases, classes: as in :class:`~nnunet_kd.evaluation.results.Evaluation`.
        values: for each of :data:`MEASURES` an array (cases, classes), between 0 and 1; NaN where no voxel counts.
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    values: Mapping[str, Values]

    def summary(self, measure: str, class_name: str | None = None) -> Summary:
        """Mean and standard error over cases, of one class or of each case's mean over classes."""
        values = self.values[measure]
        return summarise(values.mean(1) if class_name is None else values[:, self.classes.index(class_name)])

    def write_csv(self, path: Path) -> None:
        """One row per case and class, with all digits; undefined values are left blank."""
        names = [measure.name for measure in MEASURES]
        rows = (
            [case, class_name, *(csv_number(self.values[name][row, column]) for name in names)]
            for row, case in enumerate(self.cases)
            for column, class_name in enumerate(self.classes)
        )
        write_csv(path, ("case", "class", *names), rows)


def probabilities_of(prediction: Path, ending: str) -> Path:
    """The ``.npz`` file beside a segmentation."""
    return prediction.with_name(f"{prediction.name.removesuffix(ending)}.npz")


def has_probabilities(pairs: Iterable[CasePair], ending: str) -> bool:
    """Whether all of these cases have a file of probabilities beside their segmentation."""
    return all(probabilities_of(pair.prediction, ending).is_file() for pair in pairs)


def pool_calibrations(by_seed: Sequence[Sequence[Calibration]]) -> Calibration:
    """One method's folds side by side, and its seeds averaged case by case.

    Args:
        by_seed: for every seed one calibration per fold, the same cases for every seed.
    """
    first = by_seed[0]
    values = {
        measure.name: np.mean([np.concatenate([fold.values[measure.name] for fold in folds]) for folds in by_seed], 0)
        for measure in MEASURES
    }
    return Calibration(tuple(case for fold in first for case in fold.cases), first[0].classes, values)


def calibration_table(methods: Mapping[str, Calibration], without: Sequence[str]) -> Table:
    """One row per method and class, first over all classes.

    Args:
        methods: by name, at least one.
        without: methods that have no probabilities.
    """
    rows = [
        (name, class_name or OVERALL, *(mean_and_error(found.summary(m.name, class_name), m) for m in MEASURES))
        for name, found in methods.items()
        for class_name in (None, *found.classes)
    ]
    note = (
        f"From the probabilities beside the segmentations, voxel by voxel; mean ± standard error over cases. Calibration error: "
        f"expected, in {BINS} bins. Undecided: between {DECIDED:.0%} and {1 - DECIDED:.0%}."
    )
    if without:
        note += f" No probabilities were saved of {', '.join(without)} (--npz, --save_probabilities)."
    return Table("Calibration", ("Method", "Class", *(m.heading for m in MEASURES)), tuple(rows), note)


def evaluate_probabilities(
    prediction_folder: Path,
    reference_folder: Path,
    dataset_json_path: Path,
    cases: Iterable[str] | None = None,
    pool: ProcessPoolExecutor | None = None,
) -> Calibration:
    """Measure every case's probabilities against its reference, with a progress bar.

    Args:
        prediction_folder, reference_folder, dataset_json_path, cases: see
            :func:`~nnunet_kd.evaluation.folders.evaluate_folder`.
        pool: of :func:`nnunet_kd.system.processes.worker_pool`; default: this process.

    Raises:
        DataError: probabilities are missing, cannot be read, or have another shape than the reference; names all such cases.
    """
    dataset_json = read_dataset_json(dataset_json_path)
    labels = read_labels(dataset_json, dataset_json_path)
    pairs = find_pairs(prediction_folder, reference_folder, labels.file_ending, cases)
    plans = find_plans(prediction_folder, dataset_json_path.parent)
    reader = dataset_reader(dataset_json, plans, [pair.reference for pair in pairs])
    missing = [pair.case for pair in pairs if not probabilities_of(pair.prediction, labels.file_ending).is_file()]
    if missing:
        raise DataError(
            f"no probabilities in {prediction_folder} for {len(missing)} of {counted(len(pairs), 'case')}: {some(missing, 8)}. "
            f"Predict them with --save_probabilities, which writes CASE.npz beside every segmentation."
        )
    measured = run_all(partial(measure_pair, labels=labels, reader=reader), pairs, pool, "measuring probabilities")
    if problems := [found for found in measured if isinstance(found, str)]:
        raise DataError("probabilities do not fit their references: " + "; ".join(problems[:8]) + ".")
    whole = [found for found in measured if not isinstance(found, str)]
    values = {
        measure.name: np.array([[case[name][measure.name] for name in labels.classes] for case in whole])
        for measure in MEASURES
    }
    return Calibration(tuple(pair.case for pair in pairs), tuple(labels.classes), values)


def measure_pair(pair: CasePair, labels: LabelSet, reader: BaseReaderWriter) -> dict[str, dict[str, float]] | str:
    """Measures of every class in one case, or in words why there are none."""
    path = probabilities_of(pair.prediction, labels.file_ending)
    try:
        with np.load(path) as file:
            probabilities = file["probabilities"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        return f"{path} cannot be read as probabilities of nnU-Net ({error})"
    reference = whole_numbers(read_segmentation(pair.reference, reader)[0])[0][0]
    regions = any(isinstance(label, tuple) for label in labels.classes.values())
    channels = len(labels.classes) + (0 if regions else 1)
    if probabilities.shape != (channels, *reference.shape):
        return f"{path} has the shape {probabilities.shape}, the reference asks for {(channels, *reference.shape)}"
    counted = np.ones(reference.shape, bool) if labels.ignore is None else reference != labels.ignore
    found = {}
    for place, (name, label) in enumerate(labels.classes.items()):
        channel = place if regions else place + 1
        found[name] = measure_channel(probabilities[channel][counted], mask_of(reference, label)[counted])
    return found


def measure_channel(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Measures of one class.

    Brier score: mean of ``(p - y)^2``. Expected calibration error: over :data:`BINS` bins of ``p``, the distance between the mean
    ``p`` and the share of ``y`` in the bin, weighted by the bin's share of voxels.

    Args:
        probabilities: ``p`` of the voxels that count, between 0 and 1, ``(N,)``.
        truth: ``y``, whether they are of the class.

    Returns:
        One value for each of :data:`MEASURES`; NaN without voxels.
    """
    if not truth.size:
        return {measure.name: float("nan") for measure in MEASURES}
    p, y = probabilities.astype(np.float64), truth.astype(np.float64)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    gap = np.bincount(place, p - y, BINS)
    return {
        "brier": float(np.mean((p - y) ** 2)),
        "ece": float(np.abs(gap).sum() / p.size),
        "undecided": float(np.mean((p > DECIDED) & (p < 1 - DECIDED))),
    }
