"""Write the tables of docs/results.md anew, from what ``hippocampus.py --keep`` left; a test holds the page to them.

Command: ``python benchmarks/result_tables.py``. A table stands below its line ``<!-- FOLDER: TITLE -->``.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from nnunet_kd.evaluation.metrics import DICE, HD95, NSD, Metric
from nnunet_kd.evaluation.results import OVERALL, Summary
from nnunet_kd.evaluation.tables import Table, gap_text, interval_text, mean_and_error, p_value, signed
from nnunet_kd.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGE, KEPT = ROOT / "docs" / "results.md", ROOT / "benchmarks" / "results"
EMPTY_LINE = "\n\n"
SHOWN = (DICE, HD95, NSD)
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    """A CSV file's rows."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def overall(comparison: Rows, runs: Rows) -> Table:
    """One row per method: metrics over all classes, difference in Dice with its interval, share of the gap, median epoch."""
    seconds: dict[str, list[str]] = {}
    for run in runs:
        seconds.setdefault(run["variant"], []).append(run["median_epoch_seconds"])
    header = (
        "Method",
        *(metric.heading for metric in SHOWN),
        *("Dice: difference to student", "95% interval", "p (Wilcoxon, Holm)", "Gap", "Median epoch (s)"),
    )
    rows = []
    for method in methods(comparison):
        dice = row_of(comparison, method, DICE, OVERALL)
        rows.append(
            (
                method,
                *(cell(comparison, method, metric, OVERALL) for metric in SHOWN),
                *compared(dice),
                ", ".join(seconds.get(method, [])),
            )
        )
    return Table("Overall", header, tuple(rows))


def compared(row: dict[str, str]) -> tuple[str, str, str, str]:
    """Difference in Dice, interval, p and share of the gap of a row; empty for the reference."""
    if not row["difference"]:
        return ("", "", "", "")
    low, high = (DICE.scale * float(row[f"interval_{end}"]) for end in ("low", "high"))
    return (
        signed(DICE.scale * float(row["difference"])),
        interval_text((low, high)),
        p_value(float(row["wilcoxon_p_holm"])),
        gap_text(float(row["gap_recovered"])) if row["gap_recovered"] else "",
    )


def by_class(comparison: Rows) -> Table:
    """One row per method, for every class its metrics."""
    classes = [name for name in dict.fromkeys(row["class"] for row in comparison) if name != OVERALL]
    places = [(name, metric) for name in classes for metric in SHOWN]
    header = ("Method", *(f"{name}: {metric.title}" for name, metric in places))
    rows = tuple((m, *(cell(comparison, m, metric, name) for name, metric in places)) for m in methods(comparison))
    return Table("Per class", header, rows)


def pace(epochs: Rows) -> Table:
    """nnU-Net's pseudo Dice (%), mean over classes, of every run after so many epochs."""
    values = {(row["variant"], row["seed"], int(row["epoch"])): float(row["pseudo_dice"]) for row in epochs}
    shown = [1, *range(2, max(epoch for *_, epoch in values) + 1, 2)]
    runs = dict.fromkeys((variant, seed) for variant, seed, _ in values)
    several = len({seed for _, seed in runs}) > 1
    rows = tuple(
        (
            f"{variant}, seed {seed}" if several else variant,
            *(f"{100 * values[variant, seed, epoch]:.1f}" for epoch in shown),
        )
        for variant, seed in runs
    )
    return Table("Pace", ("Epoch", *map(str, shown)), rows)


def methods(comparison: Rows) -> list[str]:
    """In their order."""
    return list(dict.fromkeys(row["method"] for row in comparison))


def row_of(comparison: Rows, method: str, metric: Metric, class_name: str) -> dict[str, str]:
    """One row of ``comparison.csv``."""
    wanted = (method, metric.name, class_name)
    return next(row for row in comparison if (row["method"], row["metric"], row["class"]) == wanted)


def cell(comparison: Rows, method: str, metric: Metric, class_name: str) -> str:
    """Mean ± standard error."""
    row = row_of(comparison, method, metric, class_name)
    summary = Summary(float(row["mean"]), float(row["standard_error"]), int(row["cases"]), int(row["left_out"]))
    return mean_and_error(summary, metric)


def tables(folder: Path) -> dict[str, str]:
    """Header and rows in Markdown, by the marker that stands above them in the page."""
    comparison = read(folder / "comparison.csv")
    made = [overall(comparison, read(folder / "runs.csv")), by_class(comparison), pace(read(folder / "epochs.csv"))]
    return {
        f"<!-- {folder.name}: {table.title} -->": table.markdown().partition("\n\n")[2].strip("\n") for table in made
    }


def page_with(page: str, folder: Path) -> str:
    """The page with a folder's tables below their markers."""
    for marker, table in tables(folder).items():
        if marker not in page:
            sys.exit(f"{PAGE} has no line {marker}")
        before, _, after = page.partition(marker)
        page = f"{before}{marker}\n{table}\n\n{after.lstrip().partition(EMPTY_LINE)[2].lstrip()}"
    return page


def main() -> None:
    """Rewrite the page."""
    page = PAGE.read_text()
    for folder in sorted(KEPT.iterdir()):
        page = page_with(page, folder)
    write_atomically(PAGE, lambda file: file.write(page.encode()))


if __name__ == "__main__":
    main()
