"""Is a case fit for training? Everything that is wrong with it, in words, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from nnunet_kd.datasets.case import LABEL, Case, DatasetDescription, Volume
from nnunet_kd.errors import DataError
from nnunet_kd.system.counts import counted
from nnunet_kd.system.names import name_as_text
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.naming import shadow_of
from nnunet_kd.volumes.wholeness import error_line, find_damage, stored_voxels


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
            f"{len(bad)} of {counted(total, 'case')} cannot be used; nothing was written.\n{table(bad)}"
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

    Checked: all channels present; files whole (checksums, number of voxels); 3D; one grid within each of
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
    read: dict[Path, tuple[NDArray[Any], Grid, int]] = {}
    empty_label = False
    for name, volume in volumes.items():
        try:
            if volume.path not in read:
                read = {volume.path: _read_whole(volume.path)}
            array, grid, channels = read[volume.path]
        except _Unreadable as error:
            problems.append(f"{name}: {error}")
            continue
        problem = _wrong_dimensions(volume, channels)
        if problem:
            problems.append(f"{name}: {problem}")
            continue
        grids[name] = grid
        values = array if volume.index is None or array.ndim == 3 else array[..., volume.index]
        if np.issubdtype(values.dtype, np.inexact) and not (finite := np.isfinite(values)).all():
            problems.append(f"{name}: {counted(int((~finite).sum()), 'voxel')} NaN or infinite")
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


def _read_whole(path: Path) -> tuple[NDArray[Any], Grid, int]:
    """Stored voxels (X, Y, Z; of a 4D file also T), and by SimpleITK, which nnU-Net reads with, grid and number of volumes."""
    damage = find_damage(path)
    if damage is not None:
        raise _Unreadable(f"{name_as_text(path.name)} {damage}")
    if (other := shadow_of(path)) is not None:
        raise _Unreadable(f"there are two, {path.name} and {other.name}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        array = stored_voxels(path)
    except (RuntimeError, ImageFileError, HeaderDataError, ValueError) as error:
        raise _Unreadable(f"{path.name} cannot be read: {error_line(error)}") from error
    if reader.GetDimension() not in (3, 4):
        raise _Unreadable(f"{path.name} has {reader.GetDimension()} dimensions")
    if reader.GetNumberOfComponents() != 1:
        raise _Unreadable(f"{path.name} holds vectors or colours, not one value per voxel")
    return array, Grid.of(reader), reader.GetSize()[3] if reader.GetDimension() == 4 else 1


def _wrong_dimensions(volume: Volume, volumes: int) -> str | None:
    if volume.index is None and volumes > 1:
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
