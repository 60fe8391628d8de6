"""Which model made which segmentation of a folder: one line a case in ``nnunet_kd_predictions.jsonl``, the last one counts.

A line is written when the case's segmentation is in its place, so a run that was killed never claims what it has not made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256 as new_hash
from pathlib import Path
from typing import Any

from nnunet_kd.errors import DataError
from nnunet_kd.inference.cases import InputCase
from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.system.counts import some
from nnunet_kd.system.files import sha256

RECORD = "nnunet_kd_predictions.jsonl"


@dataclass(frozen=True)
class ModelOrigin:
    """A model as it is told apart from others.

    Attributes:
        name: its path, and the folds that predict.
        sha256: of its file, or over those of its folds' checkpoints.
    """

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path, model: ModelFolder) -> ModelOrigin:
        """The origin of a model folder's or archive's folds."""
        digests = sorted(f"{fold} {sha256(model.checkpoint_path(fold))}" for fold in model.folds)
        return cls(f"{path} (folds {', '.join(model.folds)})", new_hash("\n".join(digests).encode()).hexdigest())


class PredictionRecord:
    """The record of one folder: of a whole run's output, or of the files that runs were told to write there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / RECORD
        self._made_by: dict[str, ModelOrigin] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                entry = json.loads(line)
                case = str(entry.pop("case"))
                self._made_by[case] = ModelOrigin(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):  # the line on which a run was killed
                continue

    def add(self, case: str, origin: ModelOrigin) -> None:
        """Append a line, on a line of its own also after one that a kill has cut short."""
        with self.path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(json.dumps({"case": case, **asdict(origin)}).encode() + b"\n")

    def refuse_others(
        self, cases: Sequence[InputCase], origin: ModelOrigin, plans: Mapping[str, Any], whole_folder: bool = True
    ) -> None:
        """Check that segmentations that would lie beside a run's, or that it would keep, are this model's.

        Those without a line may be of an earlier version or of nnU-Net itself: if they are of the run's cases, they pass if the
        plan beside them is this model's.

        Args:
            cases: of the run.
            origin: of the model.
            plans: the model's.
            whole_folder: whether the folder is the run's output, and not only a file in it.

        Raises:
            DataError: some are another model's; names it.
        """
        own = {case.name: case.output for case in cases}
        recorded = {name: cases[0].output.parent / f"{name}{cases[0].ending}" for name in self._made_by if whole_folder}
        there = [name for name, path in {**recorded, **own}.items() if path.is_file()]
        others = [name for name in there if self._made_by.get(name, origin).sha256 != origin.sha256]
        unknown = [name for name in there if name not in self._made_by]
        if others:
            maker = f"of the model {self._made_by[others[0]].name} (by the hash in {self.path.name})"
        elif unknown and (found := _plans_beside(self.folder)) != json.loads(json.dumps(plans)):
            others = unknown
            maker = (
                "of a model that is not known: there is no plans.json beside them"
                if found is None
                else f"of another model: the plans.json beside them is {_described(found)}"
            )
        if others:
            raise DataError(
                f"{self.folder} holds segmentations {maker}: {some(sorted(others))}. This run is "
                f"with {origin.name}. Choose another place with -o, or replace them with --overwrite."
            )


def _plans_beside(folder: Path) -> Any:
    try:
        return json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _described(plans: Any) -> str:
    names = plans if isinstance(plans, Mapping) else {}
    return f"{names.get('plans_name')} of {names.get('dataset_name')}, with other content than this model's"
