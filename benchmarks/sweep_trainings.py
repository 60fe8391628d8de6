"""A sweep's trainings on this disk, and files with a row for each of them."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.files import write_csv

ROOTS = ("nnUNet_results", "nnUNet_preprocessed", "nnUNet_raw")


@dataclass(frozen=True)
class Training:
    """A finished training of a sweep.

    Attributes:
        row, seed: of the sweep.
        folder: nnU-Net's, of the fold.
    """

    row: str
    seed: int
    folder: Path


def begun_trainings(sweep: Path) -> list[Path]:
    """nnU-Net's folders of the folds that a sweep has begun."""
    return sorted(sweep.glob("*/seed_*/Dataset*/*__*__*/fold_*"))


def finished_trainings(sweep: Path, fold: str) -> Iterator[Training]:
    """Trained, validated, and not in anybody's hands."""
    for folder in begun_trainings(sweep):
        trained = (folder / FINAL).is_file() and (folder / "validation" / "summary.json").is_file()
        if folder.name != f"fold_{fold}" or not trained:
            continue
        results = folder.parents[2]
        try:
            with FileLock(results / f".fold_{fold}.lock", timeout=0):
                pass
        except Timeout:
            continue
        yield Training(results.parent.name, int(results.name.removeprefix("seed_")), folder)


def without_paths(text: str) -> str:
    """nnU-Net's folders by the names of their variables, also where links were followed."""
    places = {
        str(place): name for name in ROOTS for place in (Path(os.environ[name]), Path(os.environ[name]).resolve())
    }
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, f"${places[place]}")
    return text


def add_rows(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Add rows to a CSV file whose first two columns are variant and seed; rows of the same variant and seed are replaced."""
    new = {row[:2] for row in rows}
    before: list[tuple[str, ...]] = []
    if path.is_file():
        with path.open(newline="") as file:
            header, *before = (tuple(row) for row in csv.reader(file))
        if header != tuple(columns):
            sys.exit(f"{path} has other columns than are written now: {', '.join(header)}.")
    write_csv(path, columns, [*(row for row in before if row[:2] not in new), *rows])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
