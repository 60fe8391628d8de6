"""Which model made which segmentation of a folder, kept as ``nnunet-kd predict`` keeps it: one line a case, the last one counts.

A line is written when the case's segmentation is in its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_kd_runtime.cases import Case
from nnunet_kd_runtime.description import Model
from nnunet_kd_runtime.errors import DataError

RECORD = "nnunet_kd_predictions.jsonl"
SHOWN = 5


class PredictionRecord:
    """The record of one folder.

    Args:
        folder: with segmentations, or not there yet.
        model: of this run.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        self._folder, self._model, self._path = folder, model, folder / RECORD
        self._made_by: dict[str, tuple[str, str]] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else ():
            try:
                entry = json.loads(line)
                self._made_by[str(entry["case"])] = str(entry["name"]), str(entry["sha256"])
            except (ValueError, TypeError, KeyError):  # the line on which a run was killed
                continue

    def add(self, case: str) -> None:
        """Append a line, on a line of its own also after one that a kill has cut short."""
        entry = {"case": case, "name": str(self._model.path), "sha256": self._model.sha256}
        with self._path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")

    def refuse_others(self, cases: Sequence[Case], whole_folder: bool) -> None:
        """Check that segmentations that would lie beside a run's, or that it would keep, are this model's.

        Those without a line pass if the plan beside them is this model's.

        Args:
            cases: of the run.
            whole_folder: whether the folder is the run's output, and not only a file in it.

        Raises:
            DataError: some are another model's; names it.
        """
        own = {case.name: case.output for case in cases}
        ending = self._model.file_ending
        recorded = {name: self._folder / f"{name}{ending}" for name in self._made_by if whole_folder}
        there = [name for name, path in {**recorded, **own}.items() if path.is_file()]
        others = [name for name in there if name in self._made_by and self._made_by[name][1] != self._model.sha256]
        maker = ""
        if others:
            maker = f"of the model {self._made_by[others[0]][0]} (by the hash in {RECORD})"
        else:
            unknown = [name for name in there if name not in self._made_by]
            if unknown and not same_content(self._folder / "plans.json", self._model.description["plans"]):
                others, maker = unknown, "of a model that is not known: the plans.json beside them is not this model's"
        if others:
            more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            raise DataError(
                f"{self._folder} holds segmentations {maker}: {', '.join(sorted(others)[:SHOWN])}{more}. This run is with "
                f"{self._model.path}. Choose another place with -o, or replace them with --overwrite."
            )


def same_content(path: Path, content: Any) -> bool:
    """Whether a file holds this JSON."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == content)
    except (OSError, ValueError):
        return False
