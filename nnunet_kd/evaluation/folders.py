"""Evaluate a folder of predictions against a folder of reference segmentations.

Labels, regions, file ending and reader come from nnU-Net's ``dataset.json``. Everything that can be wrong with the
files is looked for first, in all of them, so that one run tells all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_kd.evaluation.labels import LabelSet, read_dataset_json, read_labels
from nnunet_kd.evaluation.metrics import MetricOptions, measure
from nnunet_kd.evaluation.pairs import CasePair, check_pair, find_pairs, refuse_problems, warnings_of
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.nnunet.scoring import mask_of
from nnunet_kd.system.processes import run_all
from nnunet_kd.volumes.reading import dataset_reader, read_segmentation, whole_numbers


def evaluate_folder(
    prediction_folder: Path,
    reference_folder: Path,
    dataset_json_path: Path,
    options: MetricOptions | None = None,
    cases: Iterable[str] | None = None,
    pool: ProcessPoolExecutor | None = None,
    title: str = "evaluating",
) -> Evaluation:
    """Measure every case, with a progress bar.

    Args:
        prediction_folder: files named ``case + ending``.
        reference_folder: likewise.
        cases: the cases to evaluate; default: those of both folders, which must hold the same. See
            :func:`~nnunet_kd.evaluation.pairs.find_pairs`.
        dataset_json_path: nnU-Net's ``dataset.json``.
        options: default :class:`MetricOptions`.
        pool: of :func:`nnunet_kd.system.processes.worker_pool`; default: this process.
        title: in front of the progress bar.

    Raises:
        DataError: the files do not hold; lists every problem of every file.
    """
    dataset_json = read_dataset_json(dataset_json_path)
    labels = read_labels(dataset_json, dataset_json_path)
    pairs = find_pairs(prediction_folder, reference_folder, labels.file_ending, cases)
    plans = find_plans(prediction_folder, dataset_json_path.parent)
    reader = dataset_reader(dataset_json, plans, [pair.reference for pair in pairs])
    return evaluate_pairs(pairs, labels, reader, (prediction_folder, reference_folder), options, pool, title)


def evaluate_pairs(
    pairs: Sequence[CasePair],
    labels: LabelSet,
    reader: BaseReaderWriter,
    folders: tuple[Path, Path],
    options: MetricOptions | None = None,
    pool: ProcessPoolExecutor | None = None,
    title: str = "evaluating",
) -> Evaluation:
    """:func:`evaluate_folder` of files that are paired already, at least one.

    Args:
        pairs: the files, by case.
        labels: what is measured.
        reader: of all files.
        folders: of predictions and references, for errors and the result.
        options, pool, title: see :func:`evaluate_folder`.

    Raises:
        DataError: the files do not hold; lists every problem of every file.
    """
    options = options or MetricOptions()
    checked = run_all(partial(check_pair, labels=labels, reader=reader), pairs, pool, f"{title}: checking files")
    refuse_problems([problem for found in checked for problem in found.problems], *folders)
    measured = run_all(partial(measure_case, labels=labels, reader=reader, options=options), pairs, pool, title)
    names = next(iter(measured[0].values())).keys()
    values = {
        name: np.array([[case[class_name][name] for class_name in labels.classes] for case in measured])
        for name in names
    }
    return Evaluation(
        *folders,
        tuple(pair.case for pair in pairs),
        tuple(labels.classes),
        values,
        options,
        warnings=tuple(warnings_of(pairs, checked)),
    )


def find_plans(*folders: Path) -> dict[str, Any] | None:
    """The first ``plans.json`` in these folders, or in the model folder that they lie in; ``None``: there is none."""
    for folder in folders:
        above = folder.resolve().parent
        for place in (folder, above.parent) if above.name.startswith("fold_") else (folder,):
            try:
                content = json.loads((place / "plans.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(content, dict) and "image_reader_writer" in content:
                return content
    return None


def _read_labels(path: Path, reader: BaseReaderWriter) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    array, properties = read_segmentation(path, reader)
    return whole_numbers(array)[0], properties


def measure_case(
    pair: CasePair, labels: LabelSet, reader: BaseReaderWriter, options: MetricOptions
) -> dict[str, dict[str, float]]:
    """Metrics of every class in one case."""
    prediction, properties = _read_labels(pair.prediction, reader)
    reference, _ = _read_labels(pair.reference, reader)
    counted = np.ones(reference[0].shape, dtype=bool) if labels.ignore is None else reference[0] != labels.ignore
    spacing = tuple(float(step) for step in properties["spacing"])
    return {
        name: measure(
            mask_of(prediction[0], label) & counted,
            mask_of(reference[0], label) & counted,
            spacing,
            options,
        )
        for name, label in labels.classes.items()
    }
