"""Tests over trainings for the proof, fixed before its runs (docs/explanation-proof.md). SciPy does the tests.

Every function takes one number per training, such as its mean Dice over the validation cases in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from nnunet_kd.evaluation.statistics import Interval, holm

LEVEL = 0.05
POWER = 0.8
RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """One row minus its baseline.

    Attributes:
        row, baseline: names.
        trainings: of both.
        difference: of the means.
        interval: Welch's 95% interval.
        p: Welch's t test, two-sided.
        holm_p: the same with Holm's correction within its family.
        detectable: the smallest true difference that the test finds with a power of 80% at the family's strictest level (Holm's
            first step, 5% over its size), were the spread as it was.
    """

    row: str
    baseline: str
    trainings: tuple[int, int]
    difference: float
    interval: Interval
    p: float
    holm_p: float
    detectable: float


def family(values: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]], size: int) -> list[Difference]:
    """Every pair of a row and its baseline, with Holm's correction over the whole family.

    Args:
        values: (trainings,) by row, at least two each.
        pairs: rows with their baselines, those that were run of the family.
        size: of the family as fixed beforehand; tests that were not run count as p = 1.
    """
    tests = [stats.ttest_ind(values[row], values[baseline], equal_var=False) for row, baseline in pairs]
    adjusted = holm([*(float(test.pvalue) for test in tests), *[1.0] * (size - len(pairs))])[: len(pairs)]
    found = []
    for (row, baseline), test, holm_p in zip(pairs, tests, adjusted, strict=True):
        interval = test.confidence_interval(1 - LEVEL)
        found.append(
            Difference(
                row,
                baseline,
                (len(values[row]), len(values[baseline])),
                float(np.mean(values[row]) - np.mean(values[baseline])),
                (float(interval.low), float(interval.high)),
                float(test.pvalue),
                holm_p,
                detectable_difference(values[row], values[baseline], LEVEL / size),
            )
        )
    return found


def detectable_difference(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> float:
    """The smallest true difference that Welch's test, two-sided at ``level``, finds with a power of 80%; NaN without any spread.

    Solves ``P(T > t) = 0.8`` for the noncentrality of Student's noncentral t, with Welch's degrees of freedom.
    """
    variances = [np.var(each, ddof=1) / len(each) for each in (first, second)]
    error = math.sqrt(sum(variances))
    if not error:
        return float("nan")
    parts = sum(variance**2 / (len(each) - 1) for variance, each in zip(variances, (first, second), strict=True))
    freedom = sum(variances) ** 2 / parts
    limit = stats.t.ppf(1 - level / 2, freedom)

    def missing_power(noncentrality: float) -> float:
        # the other tail has less than a thousandth where the power is anywhere near
        return float(stats.nct.sf(limit, freedom, noncentrality)) - POWER

    enough = 1.0
    while missing_power(enough) < 0:
        enough *= 2
    return error * float(optimize.brentq(missing_power, 0, enough))


def not_inferior(values: Sequence[float], teacher: float, margin: float) -> tuple[float, float]:
    """Whether a row is less than ``margin`` worse than one fixed teacher.

    Returns:
        The one-sided p of Student's t test of ``mean <= teacher - margin``, and the lower end of the one-sided 95% interval of
        the row's mean minus the teacher.
    """
    differences = np.asarray(values) - teacher
    test = stats.ttest_1samp(differences, -margin, alternative="greater")
    return float(test.pvalue), float(test.confidence_interval(1 - LEVEL).low)


def recovered_share(
    values: Sequence[float], plain: Sequence[float], teacher: float, seed: int = 0
) -> tuple[float, Interval]:
    """Share of the gap between the plain student and the teacher that a row closes, from means over trainings.

    Returns:
        The share, and its 95% interval: percentiles of a bootstrap over trainings, rows apart. Means of ``n`` drawn trainings
        vary too little by ``sqrt((n - 1) / n)``, which is made good. Of four or six normal trainings a row, the interval then
        holds the true share in nine of ten cases, not in 95%.
    """
    generator = np.random.default_rng(seed)

    def means(of: Sequence[float]) -> np.ndarray:
        drawn = generator.choice(np.asarray(of), size=(RESAMPLES, len(of))).mean(axis=1)
        return np.asarray(np.mean(of) + (drawn - np.mean(of)) * math.sqrt(len(of) / (len(of) - 1)))

    own, base = means(values), means(plain)
    low, high = np.percentile((own - base) / (teacher - base), [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    share = (np.mean(values) - np.mean(plain)) / (teacher - np.mean(plain))
    return float(share), (float(low), float(high))
