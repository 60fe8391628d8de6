"""The papers' tables, as Markdown, CSV, LaTeX, and as rows for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_kd.evaluation.comparison import Comparison, Row
from nnunet_kd.evaluation.metrics import DICE, HD95, LESION_F1, METRICS, NSD, Metric
from nnunet_kd.evaluation.results import OVERALL, Summary
from nnunet_kd.evaluation.statistics import Interval
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import csv_text

TESTED = (DICE, HD95, NSD, LESION_F1)
"""Metrics with tables of their own; all of them are in the CSV."""
MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    MINUS: "$-$", DASH: "--", TIMES: r"$\times$", "<": "$<$", ">": "$>$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: caption.
        header: one cell per column; the first column names the row.
        rows: as many cells as the header each.
        note: how to read it; may be empty.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """A GitHub table, numbers aligned right."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")

    def latex(self) -> str:
        """A ``table`` environment; needs the package booktabs."""
        lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (self.header, *self.rows)]
        caption = _latex(f"{self.title}. {self.note}" if self.note else f"{self.title}.")
        columns = "l" + "r" * (len(self.header) - 1)
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        return (
            f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{{columns}}}\n{body}\n"
            f"\\end{{tabular}}\n\\end{{table}}\n"
        )

    def csv(self) -> str:
        """Header and rows as shown."""
        return csv_text(self.header, self.rows)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Overall, per class, and differences to the reference."""
    return [overall_table(comparison), *class_tables(comparison), *difference_tables(comparison)]


def overall_table(comparison: Comparison) -> Table:
    """Table 1 of the paper: one row per method, one column per metric, mean ± standard error."""
    rows = [
        (name, *(mean_and_error(comparison.row(name, metric).summary, metric) for metric in METRICS))
        for name in comparison.evaluations
    ]
    of_patients = "" if comparison.patients is None else ", a patient's the mean over the cases"
    note = (
        f"Mean ± standard error over {counted(comparison.units, comparison.unit)}; a case's value is the mean over its "
        f"classes{of_patients}."
        f"{_left_out_note(comparison)}"
    )
    return Table("Overall", ("Method", *(metric.heading for metric in METRICS)), tuple(rows), note)


def _left_out_note(comparison: Comparison) -> str:
    """Cases left out of a class, largest over methods, if there are any."""
    parts = []
    for metric in TESTED:
        most = max(row.summary.left_out for row in comparison.rows if row.metric == metric)
        if most:
            parts.append(f"{metric.title} up to {most}")
    if not parts:
        return ""
    left_out = f" Left out because a mask is empty, per class and method: {', '.join(parts)}"
    return f"{left_out} (in brackets: {comparison.unit}s used)."


def class_tables(comparison: Comparison) -> list[Table]:
    """Table 2 of the paper, for Dice, HD95, NSD and lesion F1: one row per method, one column per class."""
    tables = []
    for metric in TESTED:
        rows = [
            (name, *(mean_and_error(comparison.row(name, metric, c).summary, metric) for c in comparison.classes))
            for name in comparison.evaluations
        ]
        tables.append(Table(f"{metric.heading} per class", ("Method", *comparison.classes), tuple(rows)))
    return tables


def difference_tables(comparison: Comparison) -> list[Table]:
    """Differences to the reference with interval, tests and share of the gap, one table per metric."""
    others = counted(len(comparison.evaluations) - 1, "method")
    note = (
        f"Method minus {comparison.reference}, paired by {comparison.unit}, overall over the classes defined in both; "
        f"bootstrap 95% interval (BCa) of the mean; two-sided p; Holm: adjusted over the {others}."
    )
    if comparison.teacher is not None:
        note += f" Gap: share of the difference from {comparison.reference} to {comparison.teacher} that is recovered."
    header = ["Method", "Class", "n", "Difference", "95% interval", "t-test p", "Holm", "Wilcoxon p", "Holm"]
    tables = []
    for metric in TESTED:
        rows = []
        for name in comparison.evaluations:
            if name == comparison.reference:
                continue
            for class_name in (OVERALL, *comparison.classes):
                cells = difference_cells(comparison.row(name, metric, class_name))
                rows.append((name, class_name, *(cells if comparison.teacher is not None else cells[:-1])))
        columns = (*header, "Gap") if comparison.teacher is not None else tuple(header)
        title = f"{metric.heading}: difference to {comparison.reference}"
        tables.append(Table(title, columns, tuple(rows), note))
    return tables


def difference_cells(row: Row) -> tuple[str, ...]:
    """Cases, difference, interval, p-values with their adjusted ones, share of the gap."""
    paired, scale = row.paired, row.metric.scale
    assert paired is not None  # the reference has no row of differences
    low, high = paired.interval
    digits = decimals(row.metric)
    interval = interval_text((low * scale, high * scale), digits)
    return (
        str(paired.cases),
        signed(paired.difference * scale, digits),
        interval,
        p_value(paired.t_p),
        p_value(row.t_holm),
        p_value(paired.wilcoxon_p),
        p_value(row.wilcoxon_holm),
        gap_text(row.gap),
    )


def decimals(metric: Metric) -> int:
    """Digits behind the point: volumes of small structures need one more."""
    return 3 if metric.unit == "ml" else 2


def mean_and_error(summary: Summary, metric: Metric) -> str:
    """``75.23 ± 0.90``, with the number of cases in brackets where some were left out."""
    if math.isnan(summary.mean):
        return DASH
    digits = decimals(metric)
    number = signed if metric.signed else fixed
    error = "" if math.isnan(summary.standard_error) else f" ± {summary.standard_error * metric.scale:.{digits}f}"
    cases = f" ({summary.cases})" if summary.left_out else ""
    return f"{number(summary.mean * metric.scale, digits)}{error}{cases}"


def fixed(value: float, digits: int = 2) -> str:
    """A number with a real minus sign, or a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """As :func:`fixed`, with its sign."""
    return DASH if math.isnan(value) else f"{value:+.{digits}f}".replace("-", MINUS)


def interval_text(interval: Interval, digits: int = 2) -> str:
    """Both ends with their signs, or a dash for NaN."""
    low, high = interval
    return DASH if math.isnan(low) else f"{signed(low, digits)} to {signed(high, digits)}"


def gap_text(gap: float) -> str:
    """A share of the gap in whole percent, or a dash for NaN."""
    return DASH if math.isnan(gap) else f"{round(gap * 100)}%".replace("-", MINUS)


def p_value(p: float) -> str:
    """Three significant digits, as in the papers."""
    return DASH if math.isnan(p) else f"{p:.3g}"


def joined(tables: Sequence[Table], form: str) -> str:
    """All tables in one text, ``markdown`` or ``latex``."""
    return "\n".join(table.markdown() if form == "markdown" else table.latex() for table in tables)
