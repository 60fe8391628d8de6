"""A case's prediction and its reference: found by name, read, and checked to belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.labels import LabelSet
from nnunet_kd.system.counts import some
from nnunet_kd.system.files import why_no_folder
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.naming import segmentations_in
from nnunet_kd.volumes.reading import Read, read_segmentation, whole_numbers

ROUNDING = 1e-3
"""Voxels by which two grids may lie apart unmentioned: NIfTI headers keep single precision."""
SAME_VOXELS = 0.1
"""Voxels by which two grids may lie apart and still be compared, with a warning."""
SHOWN = 8
"""Names in a message, before their number follows."""


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
        problems.append(f"{prediction_folder} lacks {some([f'{case}{ending}' for case in missing], SHOWN)}")
    if surplus := sorted(set(predictions) - wanted):
        problems.append(
            f"{prediction_folder} has {some([f'{case}{ending}' for case in surplus], SHOWN)}, "
            "which are not to be evaluated"
        )
    if missing := sorted(wanted - set(references)):
        problems.append(f"{reference_folder} lacks {some([f'{case}{ending}' for case in missing], SHOWN)}")
    if problems:
        raise DataError(
            f"{'; '.join(problems)}. Predictions and references must be the same cases. For predictions of one fold "
            f"against the references of all, give --splits splits_final.json and -f."
        )
    return [CasePair(case, predictions[case], references[case]) for case in sorted(wanted)]


def _files_by_case(folder: Path, ending: str, kind: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(
            f"the {kind} folder {folder} {why_no_folder(folder)}. Give a folder with one *{ending} file per case."
        )
    files = segmentations_in(folder, ending)
    if not files:
        raise DataError(f"the {kind} folder {folder} has no *{ending} file (the file_ending of dataset.json).")
    return files


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
    return apart(own, other)


def apart(own: Grid, other: Grid) -> tuple[float | None, list[str]]:
    """How far voxels of two grids of one size lie apart if that matters (mm), and what differs if it is too far."""
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


def refuse_problems(found: Sequence[str], prediction_folder: Path, reference_folder: Path) -> None:
    """Raise a DataError that lists the problems, if there are any."""
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


def warnings_of(pairs: Sequence[CasePair], checked: Sequence[CheckedPair]) -> Iterator[str]:
    """What was found and does not keep pairs from being measured, in words."""
    shifted = {pair.case: found.shift for pair, found in zip(pairs, checked, strict=True) if found.shift is not None}
    if shifted:
        yield (
            f"headers of predictions and references differ, so that voxels lie up to {max(shifted.values()):.2g} mm apart, less "
            f"than {SAME_VOXELS:g} voxels; compared voxel by voxel. Cases: {some(sorted(shifted), SHOWN)}."
        )
    distances = {path: distance for found in checked for path, distance in found.not_whole.items()}
    if distances:
        yield (
            f"labels that are not whole numbers were rounded; the farthest was {max(distances.values()):.2g} away. Files: "
            f"{some(sorted(distances), SHOWN)}."
        )
