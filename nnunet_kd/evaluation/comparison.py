"""Several methods over the same cases: means, differences to a reference, significance, share of the teacher's gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.evaluation.metrics import METRICS, Metric
from nnunet_kd.evaluation.results import (
    CASE_COLUMNS,
    OVERALL,
    Evaluation,
    Summary,
    Values,
    paired_values,
    summarise,
)
from nnunet_kd.evaluation.statistics import (
    PairedComparison,
    averaged_by_patient,
    compare_paired,
    gap_recovered,
    holm,
)
from nnunet_kd.system.files import write_csv

_CSV_COLUMNS = (
    *("method", "metric", "class", "mean", "standard_error", "cases", "left_out", "reference", "difference"),
    *(
        "interval_low",
        "interval_high",
        "paired_cases",
        "t_p",
        "t_p_holm",
        "wilcoxon_p",
        "wilcoxon_p_holm",
        "gap_recovered",
    ),
)


@dataclass(frozen=True)
class Row:
    """One method, metric and class.

    Attributes:
        summary: mean and standard error over patients.
        paired: against the reference; ``None`` for the reference itself.
        t_holm, wilcoxon_holm: p-values adjusted over the methods compared with the reference; NaN where there is none.
        gap: share of the teacher-student gap recovered; NaN without a teacher, and for student and teacher themselves.
    """

    method: str
    metric: Metric
    class_name: str
    summary: Summary
    paired: PairedComparison | None
    t_holm: float
    wilcoxon_holm: float
    gap: float


@dataclass(frozen=True)
class Comparison:
    """Everything the tables and pictures are made of.

    Attributes:
        evaluations: by method, in the order given.
        reference: the method that the others are compared with.
        teacher: the method that the gap is measured to; ``None`` if there is none.
        rows: every method, metric and class (first ``overall``).
        patients: of every case, whose values are averaged over a patient's cases before anything else; ``None``: every case is a
            patient.
    """

    evaluations: Mapping[str, Evaluation]
    reference: str
    teacher: str | None
    rows: tuple[Row, ...]
    patients: tuple[str, ...] | None = None

    @property
    def unit(self) -> str:
        """What one value stands for in means and tests: ``case``, or ``patient``."""
        return "case" if self.patients is None else "patient"

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.cases if self.patients is None else set(self.patients))

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases, the same for every method."""
        return self.evaluations[self.reference].cases

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, the same for every method."""
        return self.evaluations[self.reference].classes

    def row(self, method: str, metric: Metric, class_name: str = OVERALL) -> Row:
        """One of the rows."""
        return next(
            row for row in self.rows if (row.method, row.metric, row.class_name) == (method, metric, class_name)
        )

    def write_csv(self, path: Path) -> None:
        """Every row at full precision, in the units of storage (fractions, mm, ml)."""
        rows = []
        for row in self.rows:
            s, p = row.summary, row.paired
            numbers: list[float] = [s.mean, s.standard_error, s.cases, s.left_out]
            compared: list[float | str] = [""] * 9
            if p is not None:
                compared = [
                    p.difference,
                    *p.interval,
                    p.cases,
                    p.t_p,
                    row.t_holm,
                    p.wilcoxon_p,
                    row.wilcoxon_holm,
                    row.gap,
                ]
            cells = [row.method, row.metric.name, row.class_name, *numbers, self.reference, *compared]
            rows.append(["" if isinstance(cell, float) and np.isnan(cell) else cell for cell in cells])
        write_csv(path, _CSV_COLUMNS, rows)

    def write_cases_csv(self, path: Path) -> None:
        """One row per method, case and class."""
        rows = ([method, *cells] for method, found in self.evaluations.items() for cells in found.case_rows())
        write_csv(path, ["method", *CASE_COLUMNS], rows)


def teacher_among(names: Sequence[str]) -> str | None:
    """The method that the gap is measured to unless another one is named: the one called ``teacher``."""
    return "teacher" if "teacher" in names else None


def check_roles(names: Sequence[str], reference: str, teacher: str | None = None) -> None:
    """What must hold of the methods' names before anything is measured.

    Raises:
        SettingsError: a name that is not there or there twice, fewer than two methods, or one in both roles.
    """
    for role, name in (("--reference", reference), ("--teacher", teacher)):
        if name is not None and name not in names:
            raise SettingsError(f"{role} {name!r} is not among the methods: {', '.join(names)}.")
    if len(set(names)) != len(names):
        raise SettingsError(f"two methods have the same name: {', '.join(names)}. Give each its own.")
    if len(names) < 2:
        raise SettingsError("a comparison needs at least two methods; give another name=FOLDER.")
    if teacher == reference:
        raise SettingsError(
            f"{reference!r} cannot be reference and teacher at once. Give the undistilled student as --reference."
        )


def compare(
    evaluations: Mapping[str, Evaluation],
    reference: str,
    teacher: str | None = None,
    patients: Sequence[str] | None = None,
) -> Comparison:
    """Compare methods over the same cases.

    Args:
        evaluations: by method.
        reference: one of them; differences are method minus reference.
        teacher: one of them, for the share of the gap; ``None`` leaves that out.
        patients: of every case. Scans of one patient are alike, and tests that took them for independent would find too much.

    Raises:
        SettingsError: a name that is not there, or fewer than two methods.
        DataError: methods with other cases or classes.
    """
    check_roles(list(evaluations), reference, teacher)
    base = evaluations[reference]
    for name, evaluation in evaluations.items():
        if evaluation.cases != base.cases or evaluation.classes != base.classes:
            other = sorted(set(evaluation.cases) ^ set(base.cases))
            raise DataError(
                f"{name} and {reference} were evaluated on other cases or classes ({', '.join(other[:8])})."
            )
    rows = [
        row for metric in METRICS for class_name in (OVERALL, *base.classes)
        for row in _rows(evaluations, reference, teacher, metric, class_name, patients)
    ]  # fmt: skip
    return Comparison(dict(evaluations), reference, teacher, tuple(rows), None if patients is None else tuple(patients))


def _rows(
    evaluations: Mapping[str, Evaluation],
    reference: str,
    teacher: str | None,
    metric: Metric,
    class_name: str,
    patients: Sequence[str] | None,
) -> list[Row]:
    def values(*names: str) -> list[Values]:
        found = paired_values([evaluations[name] for name in names], metric.name, class_name)
        return found if patients is None else averaged_by_patient(found, patients)

    others = [name for name in evaluations if name != reference]
    paired = {}
    for name in others:
        own, base = values(name, reference)
        paired[name] = compare_paired(own, base)
    t_holm = dict(zip(others, holm([paired[name].t_p for name in others]), strict=True))
    wilcoxon_holm = dict(zip(others, holm([paired[name].wilcoxon_p for name in others]), strict=True))
    nan = float("nan")
    rows = []
    for name in evaluations:
        gap = nan
        # a signed difference has no better and worse, so no gap to close
        if teacher is not None and name not in (reference, teacher) and metric.better:
            gap = gap_recovered(*values(name, reference, teacher), better=metric.better)
        summary = summarise(values(name)[0])
        rows.append(
            Row(
                name,
                metric,
                class_name,
                summary,
                paired.get(name),
                t_holm.get(name, nan),
                wilcoxon_holm.get(name, nan),
                gap,
            )
        )
    return rows
