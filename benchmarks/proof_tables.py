"""Tables of the proof, from what ``proof.py --keep`` and ``proof_minutes.py`` kept (docs/explanation-proof.md).

    python benchmarks/proof_tables.py

Writes ``table.md`` and ``tests.csv`` into ``benchmarks/results/proof-DATASET``. ``draw_proof.py`` draws the same values. What was
not run is left out, and named below the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from proof_statistics import Difference, family, not_inferior, recovered_share
from proof_values import (
    CORE,
    DATASETS,
    INHERITED,
    KEPT,
    LONG,
    LONGER,
    OBJECTIVES,
    PLAIN,
    SHARING,
    TEACHER,
    Proof,
    read_proof,
)
from scipy import stats

from nnunet_kd.evaluation.metrics import DICE, HD95, NSD, Metric
from nnunet_kd.evaluation.tables import DASH, Table, decimals, fixed, gap_text, interval_text, p_value, signed
from nnunet_kd.system.files import write_atomically, write_csv

SHOWN = (DICE, HD95, NSD)
BASELINES = {INHERITED: PLAIN, "inherited-soft": INHERITED, "inherited-dcd": INHERITED, "inherited-soft-dcd": INHERITED}
FAMILY = len(BASELINES) + 1
"""Tests of one dataset: those of :data:`BASELINES`, and the best row against plain at its minutes."""
MARGIN = 0.5
"""Dice below the teacher that still counts as not inferior."""


def differences(proof: Proof) -> dict[tuple[str, str], Difference]:
    """The family of one dataset, by row and baseline; pairs with less than two trainings of either are left out."""
    pairs = [*BASELINES.items(), *([(proof.best, LONGER)] if proof.best is not None else [])]
    run = [pair for pair in pairs if min(len(proof.rows.get(row, ())) for row in pair) > 1]
    values = {row: proof.values(row) for pair in run for row in pair}
    return {(one.row, one.baseline): one for one in family(values, run, FAMILY)}


def core_table(proof: Proof) -> Table:
    """One row per core row: means over trainings with their standard deviation, differences, share of the gap, minutes."""
    header = (
        *("Row", "Trainings", *(metric.heading for metric in SHOWN), "Dice: 95% over cases"),
        *(
            "Dice: difference",
            "95% interval",
            "p (Welch, Holm)",
            "Share of the gap",
            "Minutes",
            "Minutes, shared by five",
        ),
    )
    found = differences(proof)
    rows = []
    for row in [TEACHER, *proof.trained]:
        own = found.get((row, BASELINES.get(row, "")))
        minutes = (proof.minutes_of(row), proof.minutes_of(row, sharing=SHARING))
        rows.append(
            (
                row,
                str(len(proof.rows[row])),
                *(mean(proof, row, metric) for metric in SHOWN),
                interval_text(interval_over_cases(proof, row)),
                *(difference_cells(own) if own is not None else [DASH] * 3),
                share_text(proof, row),
                *(DASH if np.isnan(one) else f"{one:.1f}" for one in minutes),
            )
        )
    return Table(DATASETS[proof.name], header, tuple(rows), notes(proof, found))


def single_table(proof: Proof) -> Table | None:
    """Rows that are trained once, without p values; ``None`` if there is none."""
    shown = [row for row in (*OBJECTIVES, *LONG) if row in proof.rows]
    header = ("Row", *(metric.heading for metric in SHOWN))
    rows = tuple((row, *(mean(proof, row, metric) for metric in SHOWN)) for row in shown)
    return Table(f"{DATASETS[proof.name]}: one training each", header, rows) if rows else None


def interval_over_cases(proof: Proof, row: str) -> tuple[float, float]:
    """Student's 95% interval of the mean over cases, or over patients; trainings are averaged."""
    values = proof.by_case(row)
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)


def difference_cells(one: Difference) -> tuple[str, ...]:
    """Difference with its baseline, interval, p."""
    return f"{signed(one.difference)} to {one.baseline}", interval_text(one.interval), p_value(one.holm_p)


def share_text(proof: Proof, row: str) -> str:
    """Share of the gap with its interval; a dash for what it is counted from, and for single trainings."""
    if row in (PLAIN, TEACHER) or min(len(proof.rows[row]), len(proof.rows.get(PLAIN, ()))) < 2:
        return DASH
    share, (low, high) = recovered_share(proof.values(row), proof.values(PLAIN), proof.teacher)
    return f"{gap_text(share)} ({100 * low:.0f} to {100 * high:.0f})"


def mean(proof: Proof, row: str, metric: Metric) -> str:
    """Mean over trainings ± their standard deviation."""
    values, digits = proof.values(row, metric), decimals(metric)
    spread = f" ± {fixed(float(np.std(values, ddof=1)), digits)}" if len(values) > 1 else ""
    return fixed(float(np.mean(values)), digits) + spread


def notes(proof: Proof, found: Mapping[tuple[str, str], Difference]) -> str:
    """What stands below the table."""
    told = ["Means over trainings ± their standard deviation."]
    if proof.best is not None and (best := found.get((proof.best, LONGER))) is not None:
        told.append(
            f"The best row against plain at its minutes: {signed(best.difference)} Dice, 95% interval "
            f"{interval_text(best.interval)}, p {p_value(best.holm_p)} with Holm."
        )
    if proof.best is not None and len(proof.rows.get(proof.best, ())) > 1:
        p, low = not_inferior(proof.values(proof.best), proof.teacher, MARGIN)
        told.append(f"Not inferior to the teacher by {MARGIN} Dice: p {p_value(p)}, lower end {signed(low)}.")
    if found:
        largest = max(one.detectable for one in found.values())
        told.append(f"Every test finds a true difference of {fixed(largest)} Dice in four of five cases.")
    if proof.not_run:
        told.append(f"Not run: {', '.join(proof.not_run)}.")
    return " ".join(told)


def write_tests(path: Path, proof: Proof) -> None:
    """The family with all digits."""
    columns = ("row", "baseline", "trainings", "difference", "low", "high", "p", "holm_p", "detectable")
    rows = []
    for one in differences(proof).values():
        trainings = "/".join(map(str, one.trainings))
        rows.append(
            (one.row, one.baseline, trainings, one.difference, *one.interval, one.p, one.holm_p, one.detectable)
        )
    write_csv(path, columns, rows)


def write_tables(proof: Proof, folder: Path) -> None:
    """``table.md`` and ``tests.csv``."""
    single = single_table(proof)
    tables = [core_table(proof), *([single] if single is not None else [])]
    text = "\n".join(table.markdown() for table in tables).encode()
    write_atomically(folder / "table.md", lambda file: file.write(text))
    write_tests(folder / "tests.csv", proof)


def main() -> None:
    """See the module."""
    for name in DATASETS:
        proof = read_proof(name)
        if any(row in proof.rows for row in CORE):
            write_tables(proof, KEPT / f"proof-{name}")


if __name__ == "__main__":
    main()
