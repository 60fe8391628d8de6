"""Compare what ``hippocampus.py --keep`` left, and write the tables of results/hippocampus/README.md. A test compares both.

Command: ``python benchmarks/result_tables.py`` (through ``nnunet-kd combine``). A table stands below its line
``<!-- FOLDER: TITLE -->``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sweep_trainings import read_rows

from nnunet_kd.evaluation.kept import choose_trainings, read_kept
from nnunet_kd.evaluation.metrics import DICE, HD95, NSD, Metric
from nnunet_kd.evaluation.results import OVERALL, Summary
from nnunet_kd.evaluation.tables import Table, gap_text, interval_text, mean_and_error, p_value, signed
from nnunet_kd.system.files import write_atomically
from nnunet_kd.workflows.comparison import CASES_BY_SEED

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results"
PAGE = KEPT / "hippocampus" / "README.md"
COMPARISONS: dict[str, tuple[str, ...]] = {
    "hippocampus/methods": (
        *(
            "--methods",
            "teacher,student,dcd,weight-5,logits,fitnet,cwd,cwd-0.1,cwd-early,ifvd,freekd,fgbvd,figkd,fopro",
        ),
        *("--seeds", "0"),
    ),
    "hippocampus/two-seeds": ("--methods", "teacher,student,dcd,weight-5,fitnet,figkd,cwd", "--seeds", "0,12345"),
    "hippocampus/three-seeds": ("--methods", "teacher,student,dcd,weight-5", "--seeds", "0,1,12345"),
    "hippocampus/ablation": (
        "--methods",
        "teacher,student,dcd,band-s,band-a,without-idwt,mode-zero,mode-symmetric,per-level,stages-mean,levels-1,weight-0.005,weight-0.5,weight-5,late-ramp-5",
        *("--seeds", "0"),
    ),
    "hippocampus-weights/weights": ("--seeds", "0"),
}
"""What is compared of the trainings kept one folder above, as options of ``nnunet-kd combine``."""
REFERENCE = "student"
EMPTY_LINE = "\n\n"
SHOWN = (DICE, HD95, NSD)
Rows = list[dict[str, str]]


def compare(folder: Path, options: Sequence[str]) -> None:
    """Compare kept trainings; of what that writes, the small texts stay in the folder."""
    with tempfile.TemporaryDirectory() as temporary:
        command = ["nnunet-kd", "combine", folder.parent / CASES_BY_SEED, "--reference", REFERENCE, *options]
        finished = subprocess.run([*map(str, command), "-o", temporary], check=False)
        if finished.returncode:
            sys.exit(finished.returncode)
        folder.mkdir(exist_ok=True)
        for name in ("comparison.csv", "tables.md"):
            shutil.copyfile(Path(temporary) / name, folder / name)


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


def compared_runs(folder: Path, comparison: Rows, file: str) -> Rows:
    """What is kept of the runs behind a comparison: rows of ``runs.csv`` or ``epochs.csv``."""
    options = COMPARISONS[str(folder.relative_to(KEPT))]
    seeds = options[options.index("--seeds") + 1].split(",")
    kept = [row for row in read_rows(folder.parent / file) if row["seed"] in seeds]
    rows = sorted(kept, key=lambda row: seeds.index(row["seed"]))  # of all methods in the same order
    return [row for method in methods(comparison) for row in rows if row["variant"] == method]


def by_training(folder: Path, comparison: Rows) -> list[Table]:
    """Differences in Dice, seed by seed; none where there is one seed."""
    runs = compared_runs(folder, comparison, "runs.csv")
    seeds = [int(seed) for seed in dict.fromkeys(run["seed"] for run in runs)]
    kept = read_kept([folder.parent / CASES_BY_SEED])
    found = choose_trainings(kept, REFERENCE, methods(comparison), seeds).trainings.tables()[:1]
    return [Table("By training", table.header, table.rows) for table in found]


def tables(folder: Path) -> dict[str, Table]:
    """The page's tables of a comparison, by the marker that stands above them."""
    comparison = read_rows(folder / "comparison.csv")
    runs, epochs = (compared_runs(folder, comparison, file) for file in ("runs.csv", "epochs.csv"))
    made = [overall(comparison, runs), by_class(comparison), pace(epochs), *by_training(folder, comparison)]
    name = folder.relative_to(KEPT)
    return {f"<!-- {name}: {table.title} -->": table for table in made}


def page_with(page: str, folder: Path) -> str:
    """The page with a folder's tables below their markers."""
    for marker, table in tables(folder).items():
        page = below(page, marker, table)
    return page


def below(page: str, marker: str, table: Table) -> str:
    """The page with a table's header and rows below a marker, in place of the table that stands there."""
    if marker not in page:
        sys.exit(f"the page has no line {marker}")
    before, _, after = page.partition(marker)
    rest = after.lstrip()
    if rest.startswith("|"):  # the table of before
        rest = rest.partition(EMPTY_LINE)[2].lstrip()
    text = table.markdown().partition(EMPTY_LINE)[2].strip("\n")
    return f"{before}{marker}\n{text}\n\n{rest}"


def main() -> None:
    """Compare anew and rewrite the page."""
    page = PAGE.read_text()
    for name, options in COMPARISONS.items():
        compare(KEPT / name, options)
        page = page_with(page, KEPT / name)
    write_atomically(PAGE, lambda file: file.write(page.encode()))


if __name__ == "__main__":
    main()
