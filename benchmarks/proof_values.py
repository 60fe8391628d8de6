"""What was kept of the proof's trainings and minutes, and the names of its rows (docs/explanation-proof.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
BEST: str | None = None
"""The row that is named best on fold 5, before fold 0 is trained with it."""
CURVES = {"hippocampus": (0.5, 1, 2, 4), "acdc": (1, 2)}
"""Shares of the budget."""
OBJECTIVES = ("fgbvd", "figkd", "fopro", "fitnet", "cwd", "ifvd", "logits", "freekd")
LONG = ("plain-20000", "inherited-20000", "best-20000")
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
    """

    name: str
    rows: Mapping[str, BySeed]
    minutes: Mapping[str, Any]
    best: str | None

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
        """Rows of the protocol without trainings."""
        shares = (f"{row}-{share:g}x" for share in CURVES[self.name] if share != 1 for row in (PLAIN, INHERITED))
        more = (*OBJECTIVES, *LONG) if self.name == "hippocampus" else ()
        return [row for row in (*CORE, *shares, *more) if row not in self.rows]

    @property
    def teacher(self) -> float:
        """Its mean Dice in per cent."""
        return self.values(TEACHER)[0]

    def minutes_of(self, row: str, share: float = 1, sharing: int = 1) -> float:
        """What a user waits for; NaN before it was measured.

        Args:
            row: of the core.
            share: of the budget's iterations; ``plain-longer`` has as many as the best row's minutes buy.
            sharing: how many students the one-off costs are for.
        """
        known = self.minutes.get("rows", {})
        if row == LONGER and self.best in known:
            share, row = known[self.best]["plain_iterations"] / self.minutes["iterations"], PLAIN
        if row not in known:
            return float("nan")
        once, each = known[row]["once_seconds"] / sharing, float(np.median(known[row]["seconds_per_100"])) / 100
        return float(once + share * self.minutes["iterations"] * each) / 60


def read_proof(name: str, kept: Path = KEPT, best: str | None = BEST) -> Proof:
    """What lies in ``kept/proof-NAME`` and in ``kept/proof-NAME-*``."""
    paths = sorted(folder / CASES_BY_SEED for folder in kept.glob(f"proof-{name}*"))
    minutes = kept / f"proof-{name}" / "minutes.json"
    found = read_kept([path for path in paths if path.is_file()])
    return Proof(name, found, json.loads(minutes.read_text()) if minutes.is_file() else {}, best)
