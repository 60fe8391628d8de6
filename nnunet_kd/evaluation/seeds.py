"""How far trainings of the same methods lie apart, which paired tests over cases cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from nnunet_kd.evaluation.metrics import Metric
from nnunet_kd.evaluation.results import CASE_COLUMNS, Evaluation, paired_values
from nnunet_kd.evaluation.statistics import Interval
from nnunet_kd.evaluation.tables import DASH, TESTED, Table, decimals, fixed, interval_text, signed
from nnunet_kd.files import write_csv


@dataclass(frozen=True)
class Trainings:
    """Every training of every method.

    Attributes:
        seeds: two or more.
        by_method: one evaluation per seed and in their order, or a single one for what was trained once (a teacher).
        reference: one of the methods.
    """

    seeds: tuple[int, ...]
    by_method: Mapping[str, Sequence[Evaluation]]
    reference: str

    def differences(self, method: str, metric: Metric) -> list[float]:
        """Method minus reference for every seed: mean over the cases in which both are defined; NaN without any."""
        found = []
        for own, base in zip(self._each(method), self._each(self.reference), strict=True):
            values, reference_values = paired_values([own, base], metric.name)
            by_case = (values - reference_values)[~np.isnan(values) & ~np.isnan(reference_values)]
            found.append(float(by_case.mean()) if by_case.size else float("nan"))
        return found

    def _each(self, method: str) -> Sequence[Evaluation]:
        found = self.by_method[method]
        return found if len(found) == len(self.seeds) else [found[0]] * len(self.seeds)

    def tables(self) -> list[Table]:
        """Differences to the reference seed by seed, one table per tested metric; empty with a single method."""
        others = [method for method in self.by_method if method != self.reference]
        header = (
            *("Method", *(f"Seed {seed}" for seed in self.seeds)),
            *("Mean", "Standard deviation", "95% interval over trainings"),
        )
        note = (
            f"Method minus {self.reference} of the same seed, overall, mean over cases. Standard deviation and t interval are "
            f"over the {len(self.seeds)} seeds: how much another training may change. Intervals and p of the tables above are "
            "over cases, and know nothing of that."
        )
        return [
            Table(
                f"{metric.heading}: difference to {self.reference} by training",
                header,
                tuple((method, *_cells(self.differences(method, metric), metric)) for method in others),
                note,
            )
            for metric in TESTED
        ]

    def write_cases_csv(self, path: Path) -> None:
        """One row per method, seed, case and class; the seed is empty for what was trained once."""
        rows: list[list[object]] = []
        for method, evaluations in self.by_method.items():
            seeds: Sequence[int | str] = self.seeds if len(evaluations) == len(self.seeds) else [""]
            for seed, evaluation in zip(seeds, evaluations, strict=True):
                rows += ([method, seed, *cells] for cells in evaluation.case_rows())
        write_csv(path, ["method", "seed", *CASE_COLUMNS], rows)


def interval_over_trainings(differences: Sequence[float]) -> Interval:
    """Student's 95% interval of the mean of (seeds,) differences; NaN if one is NaN or there are fewer than two."""
    if len(differences) < 2 or np.isnan(differences).any():
        return (float("nan"), float("nan"))
    low, high = stats.t.interval(0.95, len(differences) - 1, np.mean(differences), stats.sem(differences))
    return (float(low), float(high))


def _cells(differences: Sequence[float], metric: Metric) -> tuple[str, ...]:
    scaled = [difference * metric.scale for difference in differences]
    digits = decimals(metric)
    return (
        *(signed(difference, digits) for difference in scaled),
        signed(float(np.mean(scaled)), digits),
        fixed(float(np.std(scaled, ddof=1)), digits) if len(scaled) > 1 else DASH,
        interval_text(interval_over_trainings(scaled), digits),
    )
