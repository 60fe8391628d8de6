"""Against scipy called directly, and against results that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nnunet_kd.evaluation.results import summarise
from nnunet_kd.evaluation.statistics import (
    BOOTSTRAP_RESAMPLES,
    averaged_by_patient,
    compare_paired,
    gap_recovered,
    holm,
)


@pytest.fixture
def pair():
    random = np.random.default_rng(3)
    reference = random.normal(0.7, 0.1, 35)
    return reference + random.normal(0.03, 0.05, 35), reference


def test_tests_and_interval_are_scipys(pair):
    method, reference = pair
    result = compare_paired(method, reference)
    assert result.t_p == pytest.approx(stats.ttest_rel(method, reference).pvalue, rel=1e-9)
    assert result.wilcoxon_p == pytest.approx(stats.wilcoxon(method, reference).pvalue, rel=1e-9)
    assert result.difference == pytest.approx(np.mean(method - reference))
    interval = stats.bootstrap(
        (method, reference),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        n_resamples=BOOTSTRAP_RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert result.interval == pytest.approx((interval.low, interval.high), rel=1e-9)
    # and near the interval of the t distribution, as these differences are normal
    by_t = stats.ttest_rel(method, reference).confidence_interval()
    assert result.interval == pytest.approx((by_t.low, by_t.high), abs=0.004)


def test_cases_without_a_value_are_left_out_in_pairs(pair):
    method, reference = (values.copy() for values in pair)
    method[2] = reference[5] = np.nan
    kept = np.delete(np.arange(35), [2, 5])
    result = compare_paired(method, reference)
    assert result.cases == 33
    assert result.t_p == pytest.approx(stats.ttest_rel(method[kept], reference[kept]).pvalue)


def test_equal_methods_do_not_differ():
    values = np.array([0.2, 0.5, 0.9])
    result = compare_paired(values, values)
    assert (result.difference, result.interval, result.t_p, result.wilcoxon_p) == (0, (0, 0), 1, 1)


def test_a_constant_difference_has_no_t_test():
    values = np.arange(8, dtype=float)
    result = compare_paired(values + 1, values)
    assert result.difference == 1
    assert np.isnan(result.t_p)
    assert np.isnan(result.interval).all()
    assert result.wilcoxon_p == pytest.approx(2 / 2**8)  # all eight signs alike
    rounded = compare_paired(np.array([0.3 + 0.1, 0.2 + 0.1, 0.7]), np.array([0.3, 0.2, 0.6]))
    assert rounded.difference == pytest.approx(0.1)
    assert np.isnan(rounded.t_p)


def test_no_common_case_gives_nothing():
    result = compare_paired(np.array([np.nan, 1.0]), np.array([1.0, np.nan]))
    assert result.cases == 0
    assert np.isnan([result.difference, result.t_p, result.wilcoxon_p, *result.interval]).all()


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_leaves_undefined_p_values_out():
    adjusted = holm([0.01, float("nan"), 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert np.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


def test_gap_recovered():
    student, teacher = np.array([0.5, 0.6, np.nan]), np.array([0.9, 0.8, 0.9])
    assert gap_recovered(student, student, teacher, better=1) == 0
    assert gap_recovered(teacher, student, teacher, better=1) == pytest.approx(1)
    assert gap_recovered(np.array([0.6, 0.65, 0.0]), student, teacher, better=1) == pytest.approx(0.075 / 0.3)
    distances = np.array([8.0, 10.0, 9.0])  # falling is better
    assert gap_recovered(distances - 1, distances, distances - 4, better=-1) == pytest.approx(0.25)
    assert np.isnan(gap_recovered(student, student, student, better=1))
    assert np.isnan(gap_recovered(student[2:], student[2:], teacher[2:], better=1))
    # a teacher that is worse leaves no gap, however far the method fell
    assert np.isnan(gap_recovered(student, teacher, student, better=1))
    assert np.isnan(gap_recovered(distances, distances, distances + 1, better=-1))


def test_a_patients_cases_count_once():
    method = np.array([0.9, 0.7, np.nan, 0.5, np.nan])
    reference = np.array([0.6, 0.6, 0.1, 0.2, np.nan])
    own, base = averaged_by_patient([method, reference], ["b", "b", "b", "a", "c"])
    assert own[:2] == pytest.approx([0.5, 0.8])
    assert base[:2] == pytest.approx([0.2, 0.6]), "of the cases that both have"
    assert np.isnan([own[2], base[2]]).all()


def test_scans_of_one_patient_are_not_taken_for_independent():
    """Without any effect, a test at 5% rejects in 5% of all studies."""
    random = np.random.default_rng(0)
    rejected = {"cases": 0, "patients": 0}
    patients = [f"{patient}" for patient in range(30) for _ in range(3)]
    for _ in range(200):
        differences = np.repeat(random.normal(0, 1, 30), 3) + random.normal(0, 0.5, 90)
        zeros = np.zeros(90)
        rejected["cases"] += stats.ttest_rel(differences, zeros).pvalue < 0.05
        own, base = averaged_by_patient([differences, zeros], patients)
        rejected["patients"] += stats.ttest_rel(own, base).pvalue < 0.05
    assert rejected["cases"] > 40
    assert rejected["patients"] < 20


def test_mean_and_standard_error():
    values = np.array([1.0, 2.0, np.nan, 6.0])
    summary = summarise(values)
    assert (summary.mean, summary.cases, summary.left_out) == (3, 3, 1)
    assert summary.standard_error == pytest.approx(stats.sem([1.0, 2.0, 6.0]))
    assert np.isnan(summarise(np.array([np.nan])).mean)
    assert np.isnan(summarise(np.array([4.0])).standard_error)


def test_differences_that_only_rounding_tells_apart_are_ties():
    # 1/3 six times and -1/3 three times, in floating point of three sizes
    method = np.array([1.0, 2 / 3, 1 / 3, 1.0, 2 / 3, 1 / 3, 0.0, 1 / 3, 2 / 3])
    reference = np.array([2 / 3, 1 / 3, 0.0, 2 / 3, 1 / 3, 0.0, 1 / 3, 2 / 3, 1.0])
    exact = compare_paired(3 * method, 3 * reference)  # whole numbers
    assert compare_paired(method, reference).wilcoxon_p == pytest.approx(exact.wilcoxon_p)
    assert compare_paired(method * 90, reference * 90).wilcoxon_p == pytest.approx(exact.wilcoxon_p)
    third = np.array([0.1 + 0.2, 0.5])
    assert compare_paired(third, np.array([0.3, 0.5])).wilcoxon_p == 1
