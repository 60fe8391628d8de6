"""Evaluate a folder of predictions against a folder of reference segmentations.

Labels, regions, file ending and reader come from nnU-Net's ``dataset.json``. Everything that can be wrong with the
files is looked for first, in all of them, so that one run tells all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.metrics import MetricOptions, measure
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.nnunet.scoring import mask_of
from nnunet_kd.system.processes import run_all
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.naming import segmentations_in
from nnunet_kd.volumes.reading import Read, dataset_reader, read_segmentation, whole_numbers

ROUNDING = 1e-3
"""Voxels by which two grids may lie apart unmentioned: NIfTI headers keep single precision."""
SAME_VOXELS = 0.1
"""Voxels by which two grids may lie apart and still be compared, with a warning."""


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


@dataclass(frozen=True)
class CheckedPair:
    """What was found in one case's files.

    Attributes:
        problems: why they cannot be measured, in words.
        shift: mm between the same voxel of both, at most; ``None`` if that is rounding.
        not_whole: how far the labels are from whole numbers, at most, by file.
    """

    problems: tuple[str, ...] = ()
    shift: float | None = None
    not_whole: Mapping[str, float] = field(default_factory=dict)


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
        prediction_folder, reference_folder: files named ``case + ending``; everything else is not looked at, nor are files
            that begin with a dot.
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
    files = segmentations_in(folder, ending)
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
    _refuse_problems([problem for found in checked for problem in found.problems], *folders)
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
        warnings=tuple(_warnings(pairs, checked)),
    )


def find_plans(*folders: Path) -> dict[str, Any] | None:
    """The first ``plans.json`` in these folders, or in the model folder that they lie in; ``None``: there is none."""
    for folder in folders:
        above = folder.resolve().parent
        for place in (folder, above.parent) if above.name.startswith("fold_") else (folder,):
            try:
                content = json.loads((place / "plans.json").read_text())
            except (OSError, ValueError):
                continue
            if isinstance(content, dict) and "image_reader_writer" in content:
                return content
    return None


def check_pair(pair: CasePair, labels: LabelSet, reader: BaseReaderWriter) -> CheckedPair:
    """Read both files of a case: whole, of one geometry, with labels of the set."""
    found = {}
    for path in (pair.prediction, pair.reference):
        try:
            found[path] = read_segmentation(path, reader)
        except DataError as error:
            return CheckedPair((str(error).removesuffix("."),))
    problems, not_whole = [], {}
    for path, allowed in ((pair.prediction, labels.known), (pair.reference, labels.known | {labels.ignore})):
        values, distance = whole_numbers(found[path][0])
        if distance and values is not found[path][0]:
            not_whole[str(path)] = distance
        if strange := sorted(value for value in np.unique(values).tolist() if value not in allowed):
            listed = ", ".join(f"{value:.9g}" for value in strange[:5])
            problems.append(
                f"{path} holds {listed}, but dataset.json knows {', '.join(map(str, sorted(labels.known)))}"
            )
    shift, differences = _apart(found[pair.prediction], found[pair.reference])
    if differences:
        problems.append(f"{pair.prediction} and {pair.reference} differ in {'; '.join(differences)}")
    return CheckedPair(tuple(problems), shift, not_whole)


def _apart(prediction: Read, reference: Read) -> tuple[float | None, list[str]]:
    """How far two grids lie apart if that matters (mm), and their differences if it is too far to compare."""
    shapes = [array.shape[1:] for array, _ in (prediction, reference)]
    if shapes[0] != shapes[1]:
        words = ["x".join(map(str, shape)) for shape in shapes]
        return None, [f"shape, {words[0]} against {words[1]}"]
    own, other = (Grid.of_properties(shapes[0], properties) for _, properties in (prediction, reference))
    shift = own.largest_shift(other)
    voxel = min(
        step for step, count in zip(other.spacing, other.size, strict=True) if count > 1 or other.size == (1, 1, 1)
    )
    if shift <= ROUNDING * voxel:
        return None, []
    if shift <= SAME_VOXELS * voxel:
        return shift, []
    differences = [
        f"{name}, {_rounded(getattr(own, name))} against {_rounded(getattr(other, name))}"
        for name in ("spacing", "origin", "direction")
        if not np.allclose(getattr(own, name), getattr(other, name), rtol=0, atol=1e-6)
    ]
    return None, [*differences, f"so that voxels lie up to {shift:.3g} mm apart"]


def _rounded(values: npt.ArrayLike) -> str:
    return str(np.round(np.asarray(values, dtype=float), 4).tolist())


def _refuse_problems(found: Sequence[str], prediction_folder: Path, reference_folder: Path) -> None:
    if not found:
        return
    shown = "\n  ".join(found[:20]) + (f"\n  and {len(found) - 20} more" if len(found) > 20 else "")
    geometry = any(" differ in " in problem for problem in found)
    raise DataError(
        f"{len(found)} problem(s) in the files of {prediction_folder} and {reference_folder}:\n  {shown}"
        + "\nPredictions have their image's geometry. If the voxels of image and reference belong together, give the reference "
        "the image's header (SimpleITK: reference.CopyInformation(image)); if not, resample one to the other."
        * geometry
    )


def _warnings(pairs: Sequence[CasePair], checked: Sequence[CheckedPair]) -> Iterator[str]:
    shifted = {pair.case: found.shift for pair, found in zip(pairs, checked, strict=True) if found.shift is not None}
    if shifted:
        yield (
            f"headers of predictions and references differ, so that voxels lie up to {max(shifted.values()):.2g} mm apart, less "
            f"than {SAME_VOXELS:g} voxels; compared voxel by voxel. Cases: {_listed(sorted(shifted), '')}."
        )
    distances = {path: distance for found in checked for path, distance in found.not_whole.items()}
    if distances:
        yield (
            f"labels that are not whole numbers were rounded; the farthest was {max(distances.values()):.2g} away. Files: "
            f"{_listed(sorted(distances), '')}."
        )


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
