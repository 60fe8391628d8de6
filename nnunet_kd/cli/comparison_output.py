"""What ``compare`` and ``combine`` share: an option, and what they show on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import rich.table
from rich.console import Console
from rich.markup import escape

from nnunet_kd.cli.options import option

if TYPE_CHECKING:
    from nnunet_kd.workflows.comparison import Compared

GroupRegex = Annotated[
    Optional[str],  # noqa: UP045  typer on Python 3.10
    option(
        "group-regex",
        "Finds the patient in a case's name; means and tests are then over patients. Default: every case is one.",
    ),
]


def write_and_show(compared: Compared, folder: Path) -> None:
    """Write the comparison; its first tables, facts and warnings also on the terminal."""
    from nnunet_kd.evaluation.tables import overall_table
    from nnunet_kd.workflows.comparison import write_comparison

    written = write_comparison(compared, folder)
    report = compared.report
    console = Console()
    calibration = [report.calibration] if report.calibration is not None else []
    for table in [overall_table(report.comparison), *report.by_training[:1], *calibration]:
        shown = rich.table.Table(*table.header, title=table.title, caption=table.note)
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row))
        console.print(shown)
    for name, fact in report.facts.items():
        console.print(f"{name}: {escape(fact)}", soft_wrap=True, highlight=False)
    for warning in report.warnings:
        console.print(f"[bold]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    console.print(f"Written: {', '.join(written)}", soft_wrap=True)
