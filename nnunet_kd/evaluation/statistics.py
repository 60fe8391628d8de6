"""Paired comparison of two methods over the same cases. SciPy does the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_kd.evaluation.results import Values

BOOTSTRAP_RESAMPLES = 9999
Interval = tuple[float, float]
"""Lower and upper end; NaN where it is not defined."""


@dataclass(frozen=True)
class PairedComparison:
    """A method minus the reference, case by case.

    Attributes:
        cases: in which both are defined.
        difference: mean of the differences.
        interval: bootstrap 95% interval of that mean.
        t_p: two-sided paired t-test.
        wilcoxon_p: two-sided Wilcoxon signed-rank test.
    """

    cases: int
    difference: float
    interval: Interval
    t_p: float
    wilcoxon_p: float


def compare_paired(method: Values, reference: Values, seed: int = 0) -> PairedComparison:
    """Compare two methods over cases (cases,) each; cases in which either is NaN are left out.

    The interval is the bias-corrected and accelerated one (Efron 1987) over cases. Undefined results are NaN: all of
    them without cases; with one case, or when all differences are equal, the interval and the t-test; where all
    differences are 0, the p-values are 1 and the interval is (0, 0).

    Args:
        method, reference: the same cases in the same order.
        seed: of the bootstrap.
    """
    defined = ~np.isnan(method) & ~np.isnan(reference)
    differences = (method - reference)[defined]
    n = differences.size
    nan = float("nan")
    if n == 0:
        return PairedComparison(0, nan, (nan, nan), nan, nan)
    if not differences.any():
        return PairedComparison(n, 0.0, (0.0, 0.0), 1.0, 1.0)
    mean = float(differences.mean())
    wilcoxon_p = _signed_ranks(differences, float(np.abs([method[defined], reference[defined]]).max()))
    if np.ptp(differences) <= 1e-9 * abs(mean):  # all equal, but for rounding
        return PairedComparison(n, mean, (nan, nan), nan, wilcoxon_p)
    bootstrap = stats.bootstrap(
        (differences,), np.mean, n_resamples=BOOTSTRAP_RESAMPLES, vectorized=True, rng=np.random.default_rng(seed)
    )
    interval = (float(bootstrap.confidence_interval.low), float(bootstrap.confidence_interval.high))
    return PairedComparison(n, mean, interval, float(stats.ttest_1samp(differences, 0.0).pvalue), wilcoxon_p)


def _signed_ranks(differences: Values, largest: float) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; differences that only rounding tells apart (2/3 - 1/3, 1 - 2/3) are ties.

    Args:
        differences: of values up to ``largest``, above 0.
    """
    rounded = np.round(differences, 12 - math.ceil(math.log10(largest)))
    return float(stats.wilcoxon(rounded).pvalue) if rounded.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979, 65-70).

    Sorted ascending, the i-th of m p-values (from 0) becomes the largest of ``min(1, (m - j) p_j)`` over ``j <= i``.
    NaN stays NaN and does not count towards m.
    """
    adjusted = [float("nan")] * len(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def averaged_by_patient(values: Sequence[Values], patients: Sequence[str]) -> list[Values]:
    """Every method's values (cases,) as means over each patient's cases (patients,), in the order of the patients' names.

    Only cases count in which all methods are defined; NaN where a patient has none.

    Args:
        values: by method, of the same cases.
        patients: of every case.
    """
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    defined = ~np.any([np.isnan(one) for one in values], axis=0)
    counts = np.bincount(place[defined], minlength=len(names))
    sums = [np.bincount(place[defined], one[defined], len(names)) for one in values]
    return [np.divide(total, counts, out=np.full(len(names), np.nan), where=counts > 0) for total in sums]


def gap_recovered(method: Values, student: Values, teacher: Values, *, better: int) -> float:
    """Share of the teacher-student gap that a method closes, ``(method - student) / (teacher - student)``.

    Means over the cases (cases,) in which all three are defined; 0 is the student, 1 the teacher. NaN without cases, or where
    the teacher is not better than the student: there is nothing to close.

    Args:
        method, student, teacher: values of the same cases.
        better: 1 if higher values are better, -1 if lower ones are.
    """
    defined = ~(np.isnan(method) | np.isnan(student) | np.isnan(teacher))
    if not defined.any():
        return float("nan")
    gap = float(np.mean(teacher[defined] - student[defined]))
    return float(np.mean(method[defined] - student[defined])) / gap if gap * better > 0 else float("nan")
