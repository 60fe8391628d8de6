"""How far trainings of the same methods lie apart, which paired tests over cases cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_kd.evaluation.metrics import Metric
from nnunet_kd.evaluation.results import Evaluation, paired_values
from nnunet_kd.evaluation.statistics import Interval, averaged_by_patient
from nnunet_kd.evaluation.tables import DASH, TESTED, Table, decimals, fixed, interval_text, signed

BySeed = Mapping[int | None, Evaluation]
"""One method's trainings; the key ``None`` stands for a single one that counts for every seed (a teacher)."""
ONE_TRAINING = "one training per method: intervals and p are of these networks; another training may differ by more"
"""Cases say how sure a difference between two networks is, not how far two trainings of one method lie apart."""
AVERAGED = "averaged per case, over those in which a value is defined"


@dataclass(frozen=True)
class Trainings:
    """Every training of every method.

    Attributes:
        seeds: that all methods have, but for those whose key is ``None``.
        by_method: every method's evaluations.
        reference: one of the methods.
        patients: of every case, whose values are averaged before they count; ``None``: every case is one.
    """

    seeds: tuple[int, ...]
    by_method: Mapping[str, BySeed]
    reference: str
    patients: Sequence[str] | None = None

    def differences(self, method: str, metric: Metric) -> list[float]:
        """Method minus reference for every seed: mean over cases or patients in which both are defined; NaN without any."""
        found = []
        for seed in self.seeds:
            own, base = self._of(method, seed), self._of(self.reference, seed)
            values, reference_values = paired_values([own, base], metric.name)
            if self.patients is not None:
                values, reference_values = averaged_by_patient([values, reference_values], self.patients)
            by_case = (values - reference_values)[~np.isnan(values) & ~np.isnan(reference_values)]
            found.append(float(by_case.mean()) if by_case.size else float("nan"))
        return found

    def _of(self, method: str, seed: int) -> Evaluation:
        found = self.by_method[method]
        return found[None] if None in found else found[seed]

    def tables(self) -> list[Table]:
        """Differences to the reference seed by seed, one table per tested metric; none unless there are two seeds."""
        if len(self.seeds) < 2:
            return []
        others = [method for method in self.by_method if method != self.reference]
        header = (
            *("Method", *(f"Seed {seed}" for seed in self.seeds)),
            *("Mean", "Standard deviation", "95% interval over trainings"),
        )
        note = (
            f"Method minus {self.reference} of the same seed, overall, mean over "
            f"{'cases' if self.patients is None else 'patients'}. Standard deviation and t interval are "
            f"over the {len(self.seeds)} seeds: how much another training may change. Intervals and p of the tables above are "
            "over cases or patients, and know nothing of that."
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


def seeds_told(seeds: Sequence[int], how: str = AVERAGED) -> str:
    """The seeds, and how they are compared, for the head of a report."""
    return f"{', '.join(map(str, seeds))} ({how if len(seeds) > 1 else ONE_TRAINING})"


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
