"""Is a case fit for training? Everything that is wrong with it, in words, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from nnunet_kd.datasets.case import LABEL, Case, DatasetDescription, Volume
from nnunet_kd.datasets.geometry import Grid
from nnunet_kd.errors import DataError
from nnunet_kd.system.names import name_as_text, name_problem


@dataclass(frozen=True)
class BadCase:
    """A case that cannot be converted, and why."""

    name: str
    folder: Path
    problems: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """What ``check_case`` found."""

    problems: tuple[str, ...]
    empty_label: bool


class BadCasesError(DataError):
    """Cases that do not hold; ``bad`` lists them, the message shows them as one table."""

    def __init__(self, bad: list[BadCase], total: int) -> None:
        self.bad = bad
        super().__init__(
            f"{len(bad)} of {total} cases do not hold; nothing was written.\n{table(bad)}"
            "Repair or download them again, or leave them out with --skip-bad."
        )


def table(bad: list[BadCase]) -> str:
    """One row per bad case: its name, why, and the folder."""
    view = Table(box=box.ASCII, show_lines=True)
    for heading in ("case", "why", "found in"):
        view.add_column(heading, overflow="fold")  # nothing is cut off
    for case in bad:
        view.add_row(case.name, "\n".join(case.problems), str(case.folder))
    text = StringIO()
    Console(file=text, width=160, markup=False, highlight=False, emoji=False).print(view)
    return text.getvalue()


def check_case(case: Case, description: DatasetDescription) -> CheckResult:
    """Read every image of ``case`` once and gather all that is wrong.

    Checked: all channels present; files whole (gzip checksum, number of voxels); 3D; one grid within each of
    ``description.grids`` (tolerances in ``geometry``), and overlap of the others with the first; finite values; known labels.
    An empty label map is not a problem but is reported.
    """
    if case.problems and not case.channels:
        return CheckResult(case.problems, False)
    problems = list(case.problems)
    volumes = case.volumes()
    for channel in description.channels:
        if channel not in volumes:
            problems.append(f"{channel}: missing")
    grids: dict[str, Grid] = {}
    arrays: dict[Path, NDArray[Any]] = {}
    empty_label = False
    for name, volume in volumes.items():
        try:
            if volume.path not in arrays:
                arrays = {volume.path: _whole_array(volume.path)}
            grid, channels = _grid_and_volumes(volume.path)
        except _Unreadable as error:
            problems.append(f"{name}: {error}")
            continue
        array = arrays[volume.path]
        problem = _wrong_dimensions(volume, array, channels)
        if problem:
            problems.append(f"{name}: {problem}")
            continue
        grids[name] = grid
        values = array if volume.index is None else array[..., volume.index]
        if np.issubdtype(values.dtype, np.inexact) and not (finite := np.isfinite(values)).all():
            problems.append(f"{name}: {int((~finite).sum())} voxels are NaN or infinite")
        elif name == LABEL:
            found = np.unique(values)
            unknown = [f"{value:.9g}" for value in found.tolist() if value not in description.label_values]
            if unknown:
                known = ", ".join(str(value) for value in sorted(description.label_values))
                problems.append(f"{name}: holds {', '.join(unknown[:5])}; known are {known}")
            empty_label = not found.any()
    problems += _wrong_grids(grids, description)
    return CheckResult(tuple(problems), empty_label)


class _Unreadable(Exception):
    """Why a file cannot be read."""


def _grid_and_volumes(path: Path) -> tuple[Grid, int]:
    """The grid by SimpleITK, which is what nnU-Net reads with, and the number of volumes."""
    if (problem := name_problem(path)) is not None:
        raise _Unreadable(f"{name_as_text(path.name)} {problem}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
        raise _Unreadable(f"{path.name} cannot be read ({reason})") from error
    if reader.GetDimension() not in (3, 4):
        raise _Unreadable(f"{path.name} has {reader.GetDimension()} dimensions")
    if reader.GetNumberOfComponents() != 1:
        raise _Unreadable(f"{path.name} holds vectors or colours, not one value per voxel")
    return Grid.of(reader), reader.GetSize()[3] if reader.GetDimension() == 4 else 1


def _whole_array(path: Path) -> NDArray[Any]:
    """All voxels, by nibabel: SimpleITK reads truncated gzip files without an error and fills up with zeros."""
    try:
        with ImageOpener(path) as file:
            content = file.read()  # to the end, so that gzip compares its checksum
        image = type(nibabel.load(path)).from_bytes(content)
        return np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise _Unreadable(f"{path.name} is damaged ({' '.join(str(error).split())})") from error
    except Exception as error:  # zlib.error and others that only damaged headers raise
        raise _Unreadable(f"{path.name} is damaged ({type(error).__name__}: {error})") from error


def _wrong_dimensions(volume: Volume, array: NDArray[Any], volumes: int) -> str | None:
    if volume.index is None and array.squeeze().ndim > 3:
        return f"{volume.path.name} holds {volumes} volumes instead of one"
    if volume.index is not None and volume.index >= volumes:
        return f"{volume.path.name} holds only {volumes} volumes"
    return None


def _wrong_grids(grids: dict[str, Grid], description: DatasetDescription) -> list[str]:
    problems = []
    for group in description.grids:
        present = [name for name in group if name in grids]
        for name in present[1:]:
            for difference in grids[name].differences(grids[present[0]]):
                problems.append(f"{name}: {difference} as in {present[0]}")
    reference = grids.get(description.reference_channel)
    for group in description.grids[1:]:
        for name in group:
            if reference is not None and name in grids and not grids[name].overlaps(reference):
                problems.append(f"{name}: does not overlap {description.reference_channel} in space, by their headers")
                break
    return problems
