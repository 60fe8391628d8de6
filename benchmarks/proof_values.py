"""What was kept of the proof's trainings and minutes, and the names of its rows (docs/explanation-proof.md)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from proof_origin import HERE, origins_kept

from nnunet_kd.evaluation.kept import read_kept
from nnunet_kd.evaluation.metrics import DICE, Metric
from nnunet_kd.evaluation.results import OVERALL, Values
from nnunet_kd.evaluation.seeds import BySeed
from nnunet_kd.workflows.comparison import CASES_BY_SEED

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results"
DATASETS = {"hippocampus": "Hippocampus", "acdc": "Cardiac MRI"}
TEACHER, PLAIN, INHERITED, LONGER = "teacher", "plain", "inherited", "plain-longer"
CORE = (PLAIN, "random-dcd", INHERITED, "inherited-soft", "inherited-dcd", "inherited-soft-dcd", LONGER)
BEST: str | None = "inherited-dcd"
"""The row that is named best on fold 5 (``results/hippocampus-best``), before fold 0 is trained with it."""
TRAININGS = {"hippocampus": 6, "acdc": 4}
"""Of each core row."""
CURVES = {"hippocampus": (0.5, 1, 2, 4), "acdc": (1, 2)}
"""Shares of the budget."""
OBJECTIVES = ("fgbvd", "figkd", "fopro", "fitnet", "cwd", "ifvd", "logits", "freekd")
LONG = ("plain-20000", "inherited-20000", "best-20000")
MACHINE = ("processor", "threads", "torch")
"""What all minutes of one dataset have in common."""
SAME_MINUTES = 0.1
LONG_SHARE = 10
"""Of the hippocampus budget."""
SHARING = 5
"""Students that one start and one set of soft labels serve."""
PATIENT = re.compile(r"patient\d+")
"""ACDC has two volumes of each patient, which count once."""


@dataclass(frozen=True)
class Proof:
    """What was kept of one dataset.

    Attributes:
        name: of :data:`DATASETS`.
        rows: every training by row and seed, of all sweeps; the teacher's key is ``None``.
        minutes: of ``proof_minutes.py``; empty before it ran.
        best: see :data:`BEST`.
        longer: iterations of ``plain-longer`` as described; ``None`` before they are known.
    """

    name: str
    rows: Mapping[str, BySeed]
    minutes: Mapping[str, Any]
    best: str | None
    longer: int | None = None

    def values(self, row: str, metric: Metric = DICE) -> list[float]:
        """One mean per training, in the metric's unit of the tables (per cent, mm)."""
        return [metric.scale * one.summary(metric.name, OVERALL).mean for one in self.rows[row].values()]

    def by_case(self, row: str, metric: Metric = DICE) -> Values:
        """Means over trainings and over a patient's volumes (cases or patients,)."""
        evaluations = list(self.rows[row].values())
        values = metric.scale * np.mean([one.per_case(metric.name) for one in evaluations], axis=0)
        cases = evaluations[0].cases
        groups = np.array([found[0] if (found := PATIENT.search(case)) else case for case in cases])
        return np.array([values[groups == group].mean() for group in dict.fromkeys(groups)])

    @property
    def trained(self) -> list[str]:
        """Core rows with trainings, in the protocol's order."""
        return [row for row in CORE if row in self.rows]

    @property
    def not_run(self) -> list[str]:
        """Rows of the protocol without trainings, or with fewer than it names."""
        lacking = []
        for row, wanted in self.wanted.items():
            found = len(self.rows.get(row, ()))
            lacking += [row] if not found else [f"{row} ({found} of {wanted})"] if found < wanted else []
        return lacking

    @property
    def wanted(self) -> dict[str, int]:
        """The protocol's rows with their trainings."""
        shares = [f"{row}-{share:g}x" for share in CURVES[self.name] if share != 1 for row in (PLAIN, INHERITED)]
        more = (*OBJECTIVES, *LONG) if self.name == "hippocampus" else ()
        return {**dict.fromkeys(CORE, TRAININGS[self.name]), **dict.fromkeys(shares, 3), **dict.fromkeys(more, 1)}

    @property
    def teacher(self) -> float:
        """Its mean Dice in per cent."""
        return self.values(TEACHER)[0]

    def minutes_of(self, row: str, share: float = 1, sharing: int = 1) -> float:
        """What a user waits for; NaN before it was measured.

        Args:
            row: of the core, or one of the other objectives.
            share: of the budget's iterations.
            sharing: how many students the start and the soft labels are for.
        """
        known = self.minutes.get("rows", {})
        if row in LONG:
            row, share = {LONG[0]: PLAIN, LONG[1]: INHERITED}.get(row, self.best or ""), LONG_SHARE
        if row == LONGER and self.longer is not None:
            share, row = self.longer / self.minutes.get("iterations", float("nan")), PLAIN
        if row not in known:
            return float("nan")
        once = known[row]["once_seconds"] - known[row]["shareable_seconds"] * (1 - 1 / sharing)
        each = float(np.median(known[row]["seconds_per_100"])) / 100
        return float(once + share * self.minutes["iterations"] * each) / 60

    def curve(self, row: str) -> dict[float, list[float]]:
        """Dice of all trainings by minutes, at every share of the budget that was trained; plain's also at ``plain-longer``."""
        found = {}
        for share in CURVES[self.name]:
            name = row if share == 1 else f"{row}-{share:g}x"
            if name in self.rows:
                found[self.minutes_of(row, share)] = self.values(name)
        if row == PLAIN and LONGER in self.rows:
            found.setdefault(self.minutes_of(LONGER), []).extend(self.values(LONGER))
        return dict(sorted(found.items()))

    def plain_at(self, minutes: float) -> float:
        """Mean Dice of the plain student at these minutes, between the lengths that were trained; NaN outside of them.

        Minutes that differ by less than a tenth are the same.
        """
        points = self.curve(PLAIN)
        if len(points) < 2 or np.isnan([minutes, *points]).any():
            return float("nan")
        means = [float(np.mean(values)) for values in points.values()]
        known = float(np.clip(minutes, min(points), max(points)))
        near = abs(known - minutes) < SAME_MINUTES * known
        return float(np.interp(known, list(points), means)) if near else float("nan")


def read_proof(name: str, kept: Path = KEPT, best: str | None = BEST, descriptions: Path = HERE) -> Proof:
    """What lies in ``kept/proof-NAME`` and in ``kept/proof-NAME-*``.

    Raises:
        ValueError: the minutes were measured with other code than the trainings, or on more than one machine.
    """
    folders = sorted(kept.glob(f"proof-{name}*"))
    found = read_kept([folder / CASES_BY_SEED for folder in folders if (folder / CASES_BY_SEED).is_file()])
    core = kept / f"proof-{name}"
    measured = [
        json.loads(path.read_text()) for folder in [*folders, core] if (path := folder / "minutes.json").is_file()
    ]
    codes = {one["code"] for one in measured} | {origin["code"] for path, origin in origins_kept(kept)}
    if len(codes) > 1:
        raise ValueError(f"trainings and minutes below {kept} come from different code: {', '.join(sorted(codes))}")
    machines = {tuple(one[name] for name in MACHINE) for one in measured}
    if len(machines) > 1:
        raise ValueError(f"minutes of {name} are of different machines or PyTorch: {sorted(machines)}")
    minutes: dict[str, Any] = {}
    if measured:  # the core's come last, and count where rows are measured twice
        minutes = {**measured[-1], "rows": {row: one for each in measured for row, one in each["rows"].items()}}
    return Proof(name, found, minutes, best, longer_iterations(descriptions / f"proof-{name}.yaml"))


def wanted_epochs(minutes: Mapping[str, Any], best: str, per_epoch: int) -> int:
    """Epochs of plain that fit into the best row's minutes, rounded up, by what ``proof_minutes.py`` wrote."""
    return math.ceil(int(minutes["rows"][best]["plain_iterations"]) / per_epoch)


def longer_iterations(path: Path) -> int | None:
    """Of the row ``plain-longer`` in a sweep's file; ``None`` where it is not described."""
    described = yaml.safe_load(path.read_text()) if path.is_file() else {}
    row = described.get("variants", {}).get(LONGER)
    return None if row is None else int(row["settings"]["epochs"] * described["settings"]["iterations_per_epoch"])
