"""Tables of the sweeps that choose: one row a variant, from what ``hippocampus.py --keep`` kept. A test compares both.

Command: ``python benchmarks/choice_tables.py``. It writes each table below the line ``<!-- choices -->`` of ``README.md`` in the
sweep's folder of ``benchmarks/results``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from result_tables import KEPT, below
from sweep_trainings import read_rows

from nnunet_kd.evaluation.calibration import MEASURES
from nnunet_kd.evaluation.metrics import DICE, Metric
from nnunet_kd.evaluation.results import OVERALL
from nnunet_kd.evaluation.tables import DASH, Table, fixed, interval_text, mean_and_error, signed
from nnunet_kd.system.files import write_atomically
from nnunet_kd.workflows.comparison import CASES_BY_SEED, combine_kept

REFERENCES = {
    "hippocampus-starts": "default",
    "hippocampus-starts-again": "default",
    "hippocampus-soft": "alpha-0",
    "hippocampus-best": "soft",
    "hippocampus-balance": "voxels",
    "hippocampus-inherited": "inherited-1000",
    "hippocampus-soft-final": "alpha-0",
}
"""By sweep: the row that the others are compared with."""
MARKER = "<!-- choices -->"

Rows = Sequence[dict[str, str]]


def kept_sweeps(kept: Path = KEPT) -> list[Path]:
    """Folders of the sweeps of which the reference and another row are kept."""
    found = []
    for name, reference in REFERENCES.items():
        rows = {row["method"] for row in read_rows(kept / name / CASES_BY_SEED)}
        found += [kept / name] if reference in rows and len(rows) > 1 else []
    return found


def table(folder: Path) -> Table:
    """Dice, its difference to the reference and seconds an epoch; where they are known, clipped steps and calibration."""
    reference = REFERENCES[folder.name]
    found = combine_kept([folder / CASES_BY_SEED], reference)
    comparison = found.report.comparison
    assert found.trainings is not None
    runs, clipped, trusted = (read_rows(folder / name) for name in ("runs.csv", "clipped.csv", "calibration.csv"))
    trusted = [row for row in trusted if row["class"] == OVERALL]
    columns: list[tuple[str, Rows, str, Callable[[float], str]]] = [
        ("Median epoch (s)", runs, "median_epoch_seconds", lambda value: f"{value:.3g}"),
        ("Clipped steps", clipped, "share_of_steps", lambda value: f"{value:.0%}"),
        *((one.heading, trusted, one.name, partial(scaled, one)) for one in MEASURES),
    ]
    columns = [column for column in columns if column[1]]
    rows = []
    for method in comparison.evaluations:
        row = comparison.row(method, DICE)
        by_seed = found.trainings.by_method[method].values()
        each = ", ".join(fixed(DICE.scale * one.summary(DICE.name, OVERALL).mean) for one in by_seed)
        compared = (DASH, DASH)
        if row.paired is not None:
            low, high = (DICE.scale * end for end in row.paired.interval)
            compared = (signed(DICE.scale * row.paired.difference), interval_text((low, high)))
        more = (mean_text(values, method, name, text) for _, values, name, text in columns)
        rows.append((method, mean_and_error(row.summary, DICE), each, *compared, *more))
    header = (
        *("Row", DICE.heading, "Each training", f"Difference to {reference}", "95% over cases"),
        *(column[0] for column in columns),
    )
    return Table("Choices", header, tuple(rows))


def mean_text(rows: Rows, method: str, column: str, text: Callable[[float], str]) -> str:
    """A row's mean over its trainings; a dash where nothing is known."""
    values = [float(row[column]) for row in rows if row["variant"] == method]
    return text(statistics.mean(values)) if values else DASH


def scaled(measure: Metric, value: float) -> str:
    """A measure in its unit, with three digits."""
    return f"{measure.scale * value:.3g}"


def page_with(page: str, folder: Path) -> str:
    """The page with the sweep's table below its marker."""
    return below(page, MARKER, table(folder))


def main() -> None:
    """Rewrite every page."""
    for folder in kept_sweeps():
        path = folder / "README.md"
        content = page_with(path.read_text(), folder).encode()
        write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]


if __name__ == "__main__":
    main()
