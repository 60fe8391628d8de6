"""Tables and pictures of the proof, from what ``proof.py --keep`` and ``proof_minutes.py`` kept (docs/explanation-proof.md).

    python benchmarks/proof_tables.py

Writes ``benchmarks/results/proof-DATASET/table.md`` and ``tests.csv``, and the pictures ``docs/images/proof-minutes.png`` and
``proof-trainings.png``. Rows that were not run are left out, and named below the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from proof_statistics import Difference, family, not_inferior, recovered_share

from nnunet_kd.evaluation.kept import read_kept
from nnunet_kd.evaluation.metrics import DICE, HD95, NSD, Metric
from nnunet_kd.evaluation.results import OVERALL
from nnunet_kd.evaluation.seeds import BySeed
from nnunet_kd.evaluation.tables import DASH, Table, decimals, fixed, gap_text, interval_text, p_value, signed
from nnunet_kd.system.files import write_atomically, write_csv
from nnunet_kd.workflows.comparison import CASES_BY_SEED

ROOT = Path(__file__).resolve().parents[1]
KEPT, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
TEACHER, PLAIN, INHERITED, LONGER = "teacher", "plain", "inherited", "plain-longer"
CORE = (PLAIN, "random-dcd", INHERITED, "inherited-soft", "inherited-dcd", "inherited-soft-dcd", LONGER)
BASELINES = {INHERITED: PLAIN, "inherited-soft": INHERITED, "inherited-dcd": INHERITED, "inherited-soft-dcd": INHERITED}
SHARES_OF_BUDGET = (0.5, 1, 2, 4)
BEST: str | None = None
"""The row that is named best on fold 5, before fold 0 is trained with it."""
MARGIN = 0.5
"""Dice below the teacher that still counts as not inferior."""
DATASETS = {"hippocampus": "Hippocampus", "acdc": "Cardiac MRI"}
COLOURS = {
    PLAIN: "#999999", "random-dcd": "#E69F00", INHERITED: "#0072B2", "inherited-soft": "#009E73",
    "inherited-dcd": "#D55E00", "inherited-soft-dcd": "#CC79A7", LONGER: "#000000",
}  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What was kept of one dataset.

    Attributes:
        rows: every row's trainings by seed; the teacher's key is ``None``.
        curves: likewise, such as ``plain-2x``.
        minutes: of ``proof_minutes.py``; empty before it ran.
        best: the row named best beforehand; ``None`` before it was.
    """

    rows: Mapping[str, BySeed]
    curves: Mapping[str, BySeed]
    minutes: Mapping[str, Any]
    best: str | None

    def values(self, row: str, metric: Metric = DICE) -> list[float]:
        """One mean per training, in the metric's unit of the tables (per cent, mm)."""
        found = (self.rows | self.curves)[row]  # type: ignore[operator]
        return [metric.scale * one.summary(metric.name, OVERALL).mean for one in found.values()]

    @property
    def trained(self) -> list[str]:
        """Core rows with trainings, in the protocol's order."""
        return [row for row in CORE if row in self.rows]

    @property
    def teacher(self) -> float:
        """Its mean Dice in per cent."""
        return self.values(TEACHER)[0]

    def minutes_of(self, row: str, share: float = 1, column: str = "minutes") -> float:
        """What a user waits for; NaN before it was measured.

        Args:
            row: of the core; ``plain-longer`` takes the best row's.
            share: of the budget's iterations.
            column: ``minutes``, or ``minutes_shared_by_five`` with the one-off costs divided.
        """
        known = self.minutes.get("rows", {})
        source = self.best if row == LONGER else row
        if source not in known:
            return float("nan")
        own = known[source]
        once = (own["once_seconds"] if column == "minutes" else own["once_seconds"] / 5) / 60
        return float(once + share * (own[column] - once))


def read_proof(name: str, kept: Path = KEPT) -> Proof:
    """What lies in ``kept/proof-NAME`` and ``kept/proof-NAME-curves``."""
    sets = []
    for folder in (kept / f"proof-{name}", kept / f"proof-{name}-curves"):
        path = folder / CASES_BY_SEED
        sets.append(read_kept([path]) if path.is_file() else {})
    minutes = kept / f"proof-{name}" / "minutes.json"
    return Proof(
        sets[0],
        {row: by_seed for row, by_seed in sets[1].items() if row != TEACHER},
        json.loads(minutes.read_text()) if minutes.is_file() else {},
        BEST,
    )


def differences(proof: Proof) -> dict[str, Difference]:
    """The family of one dataset, by row; what the best row is compared with again is named ``best against plain-longer``."""
    pairs = [(row, base) for row, base in BASELINES.items() if row in proof.rows and base in proof.rows]
    if proof.best in proof.rows and LONGER in proof.rows:
        assert proof.best is not None
        pairs.append((proof.best, LONGER))
    trained = {row: proof.values(row) for row in proof.trained}
    pairs = [pair for pair in pairs if min(len(trained[row]) for row in pair) > 1]
    return {f"{one.row} against {one.baseline}": one for one in family(trained, pairs)}


def table(name: str, proof: Proof) -> Table:
    """One row per core row: means over trainings with their standard deviation, differences, share of the gap, minutes."""
    header = (
        *("Row", "Trainings", *(metric.heading for metric in (DICE, HD95, NSD))),
        *(
            "Difference in Dice",
            "95% interval",
            "p (Welch, Holm)",
            "Share of the gap",
            "Minutes",
            "Minutes, start shared by five",
        ),
    )
    found = differences(proof)
    rows = [(TEACHER, "1", *(_mean(proof, TEACHER, metric) for metric in (DICE, HD95, NSD)), *[DASH] * 6)]
    for row in proof.trained:
        own = found.get(f"{row} against {BASELINES.get(row)}")
        told = (
            (f"{signed(own.difference)} to {own.baseline}", interval_text(own.interval), p_value(own.holm_p))
            if own is not None
            else (DASH, DASH, DASH)
        )
        several = min(len(proof.rows[row]), len(proof.rows.get(PLAIN, ()))) > 1
        share, interval = (
            recovered_share(proof.values(row), proof.values(PLAIN), proof.teacher)
            if several and row != PLAIN
            else (float("nan"), (float("nan"), float("nan")))
        )
        gap = DASH if np.isnan(share) else f"{gap_text(share)} ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})"
        minutes = [proof.minutes_of(row, column=column) for column in ("minutes", "minutes_shared_by_five")]
        means = (_mean(proof, row, metric) for metric in (DICE, HD95, NSD))
        rows.append((row, str(len(proof.rows[row])), *means, *told, gap, *(_minutes(one) for one in minutes)))
    missing = [row for row in CORE if row not in proof.rows]
    note = "Means over trainings ± their standard deviation. " + _sentences(proof, found)
    note += f" Not run: {', '.join(missing)}." if missing else ""
    return Table(DATASETS[name], header, tuple(rows), note)


def _sentences(proof: Proof, found: Mapping[str, Difference]) -> str:
    told = []
    best = found.get(f"{proof.best} against {LONGER}")
    if best is not None:
        told.append(
            f"The best row against plain at its minutes: {signed(best.difference)} Dice ({interval_text(best.interval)}; "
            f"p {p_value(best.holm_p)} with Holm)."
        )
        p, low = not_inferior(proof.values(best.row), proof.teacher, MARGIN)
        told.append(f"Not inferior to the teacher by {MARGIN} Dice: p {p_value(p)}, lower bound {signed(low)}.")
    if found:
        largest = max(one.detectable for one in found.values())
        told.append(f"Every test finds a true difference of {fixed(largest)} Dice in four of five cases.")
    return " ".join(told)


def _mean(proof: Proof, row: str, metric: Metric) -> str:
    values, digits = proof.values(row, metric), decimals(metric)
    spread = f" ± {fixed(float(np.std(values, ddof=1)), digits)}" if len(values) > 1 else ""
    return fixed(float(np.mean(values)), digits) + spread


def _minutes(value: float) -> str:
    return DASH if np.isnan(value) else f"{value:.1f}"


def write_tests(path: Path, proof: Proof) -> None:
    """The family with all digits."""
    columns = ("row", "baseline", "trainings", "difference", "low", "high", "p", "holm_p", "detectable")
    cells = (
        (
            one.row,
            one.baseline,
            "/".join(map(str, one.trainings)),
            one.difference,
            *one.interval,
            one.p,
            one.holm_p,
            one.detectable,
        )
        for one in differences(proof).values()
    )
    write_csv(path, columns, cells)


def draw_minutes(proofs: Mapping[str, Proof], path: Path) -> None:
    """Dice against minutes with the teacher's line; rows without minutes are left out."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axis, (name, proof) in zip(figure.subplots(1, len(proofs), squeeze=False)[0], proofs.items(), strict=True):
        axis.axhline(proof.teacher, color="black", linewidth=1, linestyle="--")
        axis.text(
            0.99, proof.teacher, "teacher ", transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=8
        )
        for row in (PLAIN, INHERITED):
            _draw_curve(axis, proof, row)
        for row in (row for row in proof.trained if row not in (PLAIN, INHERITED)):
            minutes, values = proof.minutes_of(row), proof.values(row)
            axis.plot([minutes] * len(values), values, "o", color=COLOURS[row], alpha=0.35, markersize=4)
            axis.plot(minutes, np.mean(values), "D", color=COLOURS[row], label=row)
        axis.set_xlabel("minutes on two CPU cores, everything included")
        axis.set_ylabel("Dice (%), validation cases")
        axis.set_title(DATASETS[name])
        axis.legend(fontsize=8, loc="lower right")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _draw_curve(axis: Any, proof: Proof, row: str) -> None:
    points: list[tuple[float, Sequence[float]]] = []
    for share in SHARES_OF_BUDGET:
        name = row if share == 1 else f"{row}-{share:g}x"
        if name in proof.rows or name in proof.curves:
            points.append((proof.minutes_of(row, share), proof.values(name)))
    for minutes, values in points:
        axis.plot([minutes] * len(values), values, "o", color=COLOURS[row], alpha=0.35, markersize=4)
    axis.plot(
        [one for one, _ in points], [np.mean(values) for _, values in points], "D-", color=COLOURS[row], label=row
    )


def draw_trainings(proofs: Mapping[str, Proof], path: Path) -> None:
    """Every single training's Dice by row."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, (name, proof) in zip(figure.subplots(1, len(proofs), squeeze=False)[0], proofs.items(), strict=True):
        axis.axvline(proof.teacher, color="black", linewidth=1, linestyle="--")
        for place, row in enumerate(proof.trained):
            values = proof.values(row)
            axis.plot(values, [place] * len(values), "o", color=COLOURS[row], alpha=0.5)
            axis.plot(np.mean(values), place, "|", color=COLOURS[row], markersize=18, markeredgewidth=2)
        axis.set_yticks(range(len(proof.trained)), proof.trained)
        axis.invert_yaxis()
        axis.set_xlabel("Dice (%) of each training; dashed: the teacher")
        axis.set_title(DATASETS[name])
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """See the module."""
    proofs = {name: proof for name in DATASETS if (proof := read_proof(name)).rows}
    for name, proof in proofs.items():
        text = table(name, proof).markdown().encode()
        write_atomically(KEPT / f"proof-{name}" / "table.md", lambda file, text=text: file.write(text))  # type: ignore[misc]
        write_tests(KEPT / f"proof-{name}" / "tests.csv", proof)
    if proofs:
        draw_minutes({name: proof for name, proof in proofs.items() if proof.minutes}, IMAGES / "proof-minutes.png")
        draw_trainings(proofs, IMAGES / "proof-trainings.png")


if __name__ == "__main__":
    main()
