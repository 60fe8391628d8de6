"""What ``compare`` and ``combine`` leave behind, and show on the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich.table
from rich.console import Console
from rich.markup import escape

from nnunet_kd.errors import DataError

if TYPE_CHECKING:
    from nnunet_kd.evaluation.report import ReportInput
    from nnunet_kd.evaluation.seeds import Trainings
    from nnunet_kd.evaluation.tables import Table

CASES_BY_SEED = "cases_by_seed.csv"


def check_output(folder: Path) -> None:
    """Whether a folder can be made or written to, known before hours of measuring.

    Raises:
        DataError: it cannot.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise DataError(f"--output {folder}: {existing} is no folder that can be written to. Choose another place.")


def write_and_show(report: ReportInput, trainings: Trainings | None, folder: Path) -> None:
    """Tables, CSV files and the report; the first tables, facts and warnings also on the terminal.

    Args:
        report: what is told.
        trainings: every training's values, to be kept; ``None``: nothing is known of seeds.
        folder: made if need be.
    """
    from nnunet_kd.evaluation.kept import write_kept
    from nnunet_kd.evaluation.report import write_report
    from nnunet_kd.evaluation.tables import comparison_tables, joined, overall_table
    from nnunet_kd.system.files import write_atomically

    comparison = report.comparison
    folder.mkdir(parents=True, exist_ok=True)
    comparison.write_csv(folder / "comparison.csv")
    comparison.write_cases_csv(folder / "cases.csv")
    written = [str(folder / "report.html"), "tables.md", "tables.tex", "comparison.csv", "cases.csv"]
    if trainings is not None:
        write_kept(trainings.by_method, folder / CASES_BY_SEED)
        written.append(CASES_BY_SEED)
    tables = [*comparison_tables(comparison), *report.by_training]
    if report.training is not None:
        tables.append(report.training)
    for name, form in (("tables.md", "markdown"), ("tables.tex", "latex")):
        text = joined(tables, form).encode()
        write_atomically(folder / name, lambda file, text=text: file.write(text))  # type: ignore[misc]
    write_report(report, folder / "report.html")
    _print([overall_table(comparison), *report.by_training[:1]], report.facts, report.warnings, written)


def _print(tables: Sequence[Table], facts: Mapping[str, str], warnings: Sequence[str], written: Sequence[str]) -> None:
    console = Console()
    for table in tables:
        shown = rich.table.Table(*table.header, title=table.title, caption=table.note)
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row))
        console.print(shown)
    for name, fact in facts.items():
        console.print(f"{name}: {escape(fact)}", soft_wrap=True, highlight=False)
    for warning in warnings:
        console.print(f"[bold]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    console.print(f"Written: {', '.join(written)}", soft_wrap=True)
