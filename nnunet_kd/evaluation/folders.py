"""Evaluate a folder of predictions against a folder of reference segmentations.

Labels, regions, file ending and reader come from nnU-Net's ``dataset.json``. Everything that can be wrong with the
files is looked for first, in all of them, so that one run tells all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.metrics import MetricOptions, measure
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.nnunet.scoring import mask_of
from nnunet_kd.system.names import name_as_text, name_problem
from nnunet_kd.system.processes import run_all

GEOMETRY_TOLERANCE = 1e-3
"""mm, and for direction cosines: NIfTI headers keep single precision."""


@dataclass(frozen=True)
class LabelSet:
    """What ``dataset.json`` says about the segmentations.

    Attributes:
        classes: name and label, or labels of a region.
        known: all values a segmentation may hold, without the ignore label.
        ignore: the ignore label; voxels with it in the reference count for nothing.
        file_ending: of the segmentations.
    """

    classes: dict[str, int | tuple[int, ...]]
    known: frozenset[int]
    ignore: int | None
    file_ending: str


@dataclass(frozen=True)
class CasePair:
    """One case's two files."""

    case: str
    prediction: Path
    reference: Path


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read nnU-Net's ``dataset.json``.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; the labels are read from it. Give nnU-Net's dataset.json with --dataset-json."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}). Give another dataset.json with --dataset-json."
        ) from error
    return content


def read_labels(dataset_json: dict[str, Any], source: Path) -> LabelSet:
    """Labels or regions to evaluate, as nnU-Net itself understands ``dataset.json``.

    Raises:
        DataError: something that nnU-Net would not accept either.
    """
    try:
        labels = dataset_json["labels"]
        manager = LabelManager(labels, dataset_json.get("regions_class_order"))
        wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        file_ending = str(dataset_json["file_ending"])
    except (KeyError, AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{source} does not describe labels as nnU-Net needs them: {error}. It must hold `labels` (with "
            f"background: 0), `file_ending` and, with regions, `regions_class_order`."
        ) from error
    as_key = {_as_key(value): name for name, value in labels.items() if name != "ignore"}
    classes = {as_key[_as_key(value)]: tuple(value) if isinstance(value, list) else value for value in wanted}
    return LabelSet(classes, frozenset(int(value) for value in manager.all_labels), manager.ignore_label, file_ending)


def _as_key(value: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(part) for part in value) if isinstance(value, Sequence) else (int(value),)


def find_pairs(
    prediction_folder: Path, reference_folder: Path, ending: str, cases: Iterable[str] | None = None
) -> list[CasePair]:
    """Pair the files of both folders by name.

    Args:
        prediction_folder, reference_folder: files named ``case + ending``; everything else is not looked at.
        ending: with the dot.
        cases: the cases to evaluate, for example a fold's; every one must be in both folders, and references of other
            cases are not looked at. Default: both folders must hold the same cases.

    Raises:
        DataError: a folder is missing or empty, or cases are missing or surplus; names them.
    """
    predictions = _files_by_case(prediction_folder, ending, "prediction")
    references = _files_by_case(reference_folder, ending, "reference")
    wanted = set(references if cases is None else cases)
    problems = []
    if missing := sorted(wanted - set(predictions)):
        problems.append(f"{prediction_folder} lacks {_listed(missing, ending)}")
    if surplus := sorted(set(predictions) - wanted):
        problems.append(f"{prediction_folder} has {_listed(surplus, ending)}, which are not to be evaluated")
    if missing := sorted(wanted - set(references)):
        problems.append(f"{reference_folder} lacks {_listed(missing, ending)}")
    if problems:
        raise DataError(
            f"{'; '.join(problems)}. Predictions and references must be the same cases. For predictions of one fold "
            f"against the references of all, give --splits splits_final.json and --fold."
        )
    return [CasePair(case, predictions[case], references[case]) for case in sorted(wanted)]


def _files_by_case(folder: Path, ending: str, kind: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"the {kind} folder {folder} does not exist. Give a folder with one *{ending} file per case.")
    files = {path.name.removesuffix(ending): path for path in folder.iterdir() if path.name.endswith(ending)}
    if not files:
        raise DataError(f"the {kind} folder {folder} has no *{ending} file (the file_ending of dataset.json).")
    return files


def _listed(names: Sequence[str], ending: str, most: int = 8) -> str:
    shown = ", ".join(f"{name}{ending}" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


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
        cases: the cases to evaluate; default: those of both folders, which must hold the same. See :func:`find_pairs`.
        dataset_json_path: nnU-Net's ``dataset.json``.
        options: default :class:`MetricOptions`.
        pool: of :func:`nnunet_kd.system.processes.worker_pool`; default: this process.
        title: in front of the progress bar.

    Raises:
        DataError: the files do not hold; lists every problem of every file.
    """
    options = options or MetricOptions()
    dataset_json = read_dataset_json(dataset_json_path)
    labels = read_labels(dataset_json, dataset_json_path)
    pairs = find_pairs(prediction_folder, reference_folder, labels.file_ending, cases)
    reader = reader_for(dataset_json, pairs[0].reference)

    problems = run_all(partial(check_pair, labels=labels, reader=reader), pairs, pool, f"{title}: checking files")
    if found := [problem for case_problems in problems for problem in case_problems]:
        shown = "\n  ".join(found[:20]) + (f"\n  and {len(found) - 20} more" if len(found) > 20 else "")
        raise DataError(
            f"{len(found)} problem(s) in the files of {prediction_folder} and {reference_folder}:\n  {shown}\n"
            f"Predict again in the space of the reference, or correct the files."
        )
    measured = run_all(partial(measure_case, labels=labels, reader=reader, options=options), pairs, pool, title)
    names = next(iter(measured[0].values())).keys()
    values = {
        name: np.array([[case[class_name][name] for class_name in labels.classes] for case in measured])
        for name in names
    }
    classes = tuple(labels.classes)
    return Evaluation(prediction_folder, reference_folder, tuple(pair.case for pair in pairs), classes, values, options)


def reader_for(dataset_json: dict[str, Any], example: Path) -> BaseReaderWriter:
    """nnU-Net's reader for the dataset's files."""
    reader: BaseReaderWriter = determine_reader_writer_from_dataset_json(dataset_json, str(example), verbose=False)()
    return reader


def check_pair(pair: CasePair, labels: LabelSet, reader: BaseReaderWriter) -> list[str]:
    """Problems of one case's files: unreadable, of different geometry, or with labels outside the set."""
    loaded = {}
    for path in (pair.prediction, pair.reference):
        if (problem := name_problem(path)) is not None:
            return [f"{name_as_text(path)} {problem}."]
        try:
            loaded[path] = reader.read_seg(str(path))
        except Exception as error:  # readers raise whatever their libraries raise
            return [f"{path} cannot be read: {error}"]
    problems = []
    for path, allowed in ((pair.prediction, labels.known), (pair.reference, labels.known | {labels.ignore})):
        if strange := sorted(value for value in np.unique(loaded[path][0]).tolist() if value not in allowed):
            values = ", ".join(f"{value:g}" for value in strange[:5])
            problems.append(
                f"{path} holds {values}, but dataset.json knows {', '.join(map(str, sorted(labels.known)))}"
            )
    prediction, reference = loaded[pair.prediction], loaded[pair.reference]
    differences = _geometry_differences(prediction[0].shape[1:], prediction[1], reference[0].shape[1:], reference[1])
    if differences:
        problems.append(f"{pair.prediction} and {pair.reference} differ in {'; '.join(differences)}")
    return problems


def _geometry_differences(
    shape: tuple[int, ...], properties: dict[str, Any], other_shape: tuple[int, ...], other: dict[str, Any]
) -> list[str]:
    """Shape, then spacing, then whatever the reader keeps of origin, direction or affine."""
    if shape != other_shape:
        return [f"shape, {'x'.join(map(str, shape))} against {'x'.join(map(str, other_shape))}"]
    geometry, other_geometry = {"spacing": properties["spacing"]}, {"spacing": other["spacing"]}
    for key in ("sitk_stuff", "nibabel_stuff"):
        geometry |= properties.get(key) or {}
        other_geometry |= other.get(key) or {}
    return [
        f"{key.replace('_', ' ')}, {_rounded(geometry[key])} against {_rounded(other_geometry[key])}"
        for key in geometry
        if key not in other_geometry
        or np.shape(geometry[key]) != np.shape(other_geometry[key])
        or not np.allclose(geometry[key], other_geometry[key], rtol=0, atol=GEOMETRY_TOLERANCE)
    ]


def _rounded(values: npt.ArrayLike) -> str:
    return str(np.round(np.asarray(values, dtype=float), 4).tolist())


def measure_case(
    pair: CasePair, labels: LabelSet, reader: BaseReaderWriter, options: MetricOptions
) -> dict[str, dict[str, float]]:
    """Metrics of every class in one case."""
    prediction, properties = reader.read_seg(str(pair.prediction))
    reference, _ = reader.read_seg(str(pair.reference))
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
