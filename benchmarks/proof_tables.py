"""Tables of the proof, from what ``proof.py --keep`` and ``proof_minutes.py`` kept (docs/explanation-proof.md).

    python benchmarks/proof_tables.py [--kept FOLDER]

Writes ``table.md`` and ``tests.csv`` into ``FOLDER/proof-DATASET`` (default: ``benchmarks/results``). ``draw_proof.py`` draws the
same values. What was
not run is left out, and named below the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from proof_statistics import Difference, family, not_inferior, recovered_share
from proof_values import (
    CORE,
    CURVES,
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
    wanted_epochs,
)
from scipy import stats

from nnunet_kd.evaluation.metrics import DICE, HD95, NSD, Metric
from nnunet_kd.evaluation.tables import DASH, Table, decimals, fixed, gap_text, interval_text, p_value, signed
from nnunet_kd.system.files import write_atomically, write_csv

SHOWN = (DICE, HD95, NSD)
BASELINES = {INHERITED: PLAIN, "inherited-soft": INHERITED, "inherited-dcd": INHERITED, "inherited-soft-dcd": INHERITED}
FAMILY = len(BASELINES) + 1
"""Tests of one dataset: those of :data:`BASELINES`, and the best row against plain at its minutes."""
TARGETS = {"hippocampus": "85% of the gap", "acdc": "within 1 Dice of the teacher"}
PER_EPOCH = 100
"""Iterations of an epoch in every row."""
FEWEST = 4
"""Trainings of which an interval of the share of the gap is given: of two it would be far too narrow."""
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
            "found with 80% power at 1%",
            "Share of the gap",
            "Minutes",
            "Minutes, shared by five",
            "Plain at these minutes",
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
                " to ".join(fixed(end) for end in interval_over_cases(proof, row)),
                *(difference_cells(own) if own is not None else [DASH] * 4),
                share_text(proof, row),
                *(DASH if np.isnan(one) else f"{one:.1f}" for one in minutes),
                DASH if row in (PLAIN, LONGER) or np.isnan(other := proof.plain_at(minutes[0])) else fixed(other),
            )
        )
    return Table(DATASETS[proof.name], header, tuple(rows), notes(proof, found))


def curves_table(proof: Proof) -> Table | None:
    """Plain and inherited at every share of the budget; ``None`` if no share but 1 was trained."""
    rows = []
    for row in (PLAIN, INHERITED):
        for share in CURVES[proof.name]:
            name = row if share == 1 else f"{row}-{share:g}x"
            if name in proof.rows:
                minutes = proof.minutes_of(row, share)
                plain = DASH if row == PLAIN or np.isnan(other := proof.plain_at(minutes)) else fixed(other)
                told = (mean(proof, name, DICE), DASH if np.isnan(minutes) else f"{minutes:.1f}", plain)
                rows.append((row, f"{share:g}", str(len(proof.rows[name])), *told))
    header = ("Row", "Share of the budget", "Trainings", DICE.heading, "Minutes", "Plain at these minutes")
    trained = any(share != "1" for _, share, *_ in rows)
    return Table(f"{DATASETS[proof.name]}: other lengths", header, tuple(rows)) if trained else None


def targets(proof: Proof) -> list[str]:
    """What the protocol aims at, beside what was measured; sentences."""
    told = []
    if proof.best is not None and proof.best in proof.rows and PLAIN in proof.rows:
        best = float(np.mean(proof.values(proof.best)))
        plain = float(np.mean(proof.values(PLAIN)))
        told.append(
            f"{proof.best} recovers {100 * (best - plain) / (proof.teacher - plain):.0f}% of the gap and ends "
            f"{fixed(proof.teacher - best)} Dice below the teacher (target: {TARGETS[proof.name]})."
        )
    longest = f"{PLAIN}-4x"
    if longest in proof.rows and INHERITED in proof.rows and proof.minutes:
        own, other = (float(np.mean(proof.values(row))) for row in (INHERITED, longest))
        minutes = proof.minutes_of(INHERITED), proof.minutes_of(PLAIN, 4)
        share = minutes[0] / minutes[1]
        told.append(
            f"inherited at 1x has {fixed(own)} Dice after {minutes[0]:.1f} minutes, plain at 4x {fixed(other)} after "
            f"{minutes[1]:.1f}: {fixed(own - other)} Dice more in {share:.0%} of the minutes (target: at least plain's Dice in a "
            f"third; {'reached' if own >= other and share <= 1 / 3 else 'missed'})."
        )
    return told


def single_table(proof: Proof) -> Table | None:
    """Rows that are trained once, without p values; ``None`` if there is none."""
    shown = [row for row in (*OBJECTIVES, *LONG) if row in proof.rows]
    header = ("Row", *(metric.heading for metric in SHOWN), "Minutes", "Plain at these minutes")
    rows = []
    for row in shown:
        took = proof.minutes_of(row)
        told = (
            DASH if np.isnan(took) else f"{took:.1f}",
            DASH if np.isnan(proof.plain_at(took)) else fixed(proof.plain_at(took)),
        )
        rows.append((row, *(mean(proof, row, metric) for metric in SHOWN), *told))
    return Table(f"{DATASETS[proof.name]}: one training each", header, tuple(rows)) if rows else None


def interval_over_cases(proof: Proof, row: str) -> tuple[float, float]:
    """Student's 95% interval of the mean over cases, or over patients; trainings are averaged."""
    values = proof.by_case(row)
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)


def difference_cells(one: Difference) -> tuple[str, ...]:
    """Difference with its baseline, interval, p, and the smallest difference that would be found."""
    told = f"{signed(one.difference)} to {one.baseline}", interval_text(one.interval), p_value(one.holm_p)
    return *told, DASH if np.isnan(one.detectable) else fixed(one.detectable)


def difference_text(one: Difference) -> str:
    """Difference, its interval and its baseline, in one cell."""
    return f"{signed(one.difference)} ({interval_text(one.interval)}) to {one.baseline}"


def share_text(proof: Proof, row: str) -> str:
    """Share of the gap with its interval; a dash for what it is counted from, and for few trainings."""
    if row in (PLAIN, TEACHER) or min(len(proof.rows[row]), len(proof.rows.get(PLAIN, ()))) < FEWEST:
        return DASH
    share, (low, high) = recovered_share(proof.values(row), proof.values(PLAIN), proof.teacher)
    return f"{gap_text(share)} ({fixed(100 * low, 0)} to {fixed(100 * high, 0)})"


def mean(proof: Proof, row: str, metric: Metric) -> str:
    """Mean over trainings ± their standard deviation."""
    values, digits = proof.values(row, metric), decimals(metric)
    spread = f" ± {fixed(float(np.std(values, ddof=1)), digits)}" if len(values) > 1 else ""
    return fixed(float(np.mean(values)), digits) + spread


def notes(proof: Proof, found: Mapping[tuple[str, str], Difference]) -> str:
    """What stands below the table."""
    told = ["Means over trainings ± their standard deviation."]
    if proof.best is not None and (best := found.get((proof.best, LONGER))) is not None:
        fits = (
            proof.longer == PER_EPOCH * wanted_epochs(proof.minutes, proof.best, PER_EPOCH) if proof.minutes else False
        )
        told.append(
            f"The best row against plain {'at its minutes' if fits else 'that was not trained for its minutes'}: "
            f"{signed(best.difference)} Dice, 95% interval "
            f"{interval_text(best.interval)}, p {p_value(best.holm_p)} with Holm. With a power of 80% at 1% the "
            f"test finds {fixed(best.detectable)} Dice."
        )
    if proof.best is not None and len(proof.rows.get(proof.best, ())) > 1:
        p, low = not_inferior(proof.values(proof.best), proof.teacher, MARGIN)
        told.append(f"Not inferior to the teacher by {MARGIN} Dice: p {p_value(p)}, lower end {signed(low)}.")
    told += targets(proof)
    if empty := missed(proof):
        told.append(f"HD95 leaves out structures that were missed altogether, a training on average: {empty}.")
    if proof.minutes and any(np.isnan(proof.plain_at(proof.minutes_of(row))) for row in proof.trained):
        told.append("Where plain at these minutes is a dash, no plain student was trained as long or as short.")
    if proof.name == "acdc":
        told.append("Millimetres are nominal: the data's spacings are lost.")
    if proof.not_run:
        told.append(f"Not run: {', '.join(proof.not_run)}.")
    return " ".join(told)


def missed(proof: Proof) -> str:
    """Rows with structures that HD95 is not defined for because nothing was predicted, with how many a training has."""
    counts = {}
    for row in proof.rows:
        every = [one.values[HD95.name][one.values[DICE.name] == 0] for one in proof.rows[row].values()]
        counts[row] = float(np.mean([np.isnan(values).sum() for values in every]))
    return ", ".join(f"{row} {count:.1f}" for row, count in counts.items() if count)


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
    tables = [table for table in (core_table(proof), curves_table(proof), single_table(proof)) if table is not None]
    text = "\n".join(table.markdown() for table in tables).encode()
    write_atomically(folder / "table.md", lambda file: file.write(text))
    write_tests(folder / "tests.csv", proof)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, default=KEPT, help="what proof.py --keep and proof_minutes.py wrote")
    kept = parser.parse_args().kept
    for name in DATASETS:
        proof = read_proof(name, kept)
        if any(row in proof.rows for row in CORE):
            write_tables(proof, kept / f"proof-{name}")


if __name__ == "__main__":
    main()
