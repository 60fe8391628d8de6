"""Differences by training: what another seed may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_kd.evaluation.metrics import COUNTS, DICE, METRICS, MetricOptions
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.evaluation.seeds import AVERAGED, ONE_TRAINING, Trainings, interval_over_trainings, seeds_told
from nnunet_kd.evaluation.tables import DASH, MINUS

NAN = float("nan")


def evaluation(*dice: list[float]) -> Evaluation:
    """Cases of two classes each."""
    names = [*(metric.name for metric in METRICS), *COUNTS]
    values = {name: np.array(dice, dtype=float) for name in names}
    cases = tuple(f"case_{index}" for index in range(len(dice)))
    return Evaluation(Path("p"), Path("r"), cases, ("core", "rim"), values, MetricOptions())


TRAININGS = Trainings(
    (3, 5),
    {
        "teacher": {None: evaluation([0.9, 0.9], [1.0, 1.0])},
        "student": {3: evaluation([0.5, 0.5], [0.7, 0.7]), 5: evaluation([0.6, 0.6], [0.8, 0.8])},
        "dcd": {3: evaluation([0.6, 0.6], [0.8, 0.8]), 5: evaluation([0.5, NAN], [NAN, NAN])},
    },
    "student",
)


def test_a_method_is_compared_with_the_reference_of_its_own_seed() -> None:
    assert TRAININGS.differences("dcd", DICE) == pytest.approx([0.1, -0.1])  # seed 5: only what both define


def test_a_teacher_of_one_training_is_compared_with_every_seed() -> None:
    assert TRAININGS.differences("teacher", DICE) == pytest.approx([0.35, 0.25])


def test_table_shows_every_training_and_their_spread() -> None:
    table = TRAININGS.tables()[0]
    assert table.header[1:3] == ("Seed 3", "Seed 5")
    assert [row[0] for row in table.rows] == ["teacher", "dcd"]
    # standard deviation of +10 and -10 points; t of one degree of freedom is 12.706, standard error 10
    assert table.rows[1][1:] == ("+10.00", f"{MINUS}10.00", "+0.00", "14.14", f"{MINUS}127.06 to +127.06")


def test_interval_is_students() -> None:
    low, high = interval_over_trainings([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))
    assert np.isnan(interval_over_trainings([1.0])).all()
    assert np.isnan(interval_over_trainings([1.0, NAN])).all()


def test_a_seed_without_a_defined_case_is_a_dash() -> None:
    empty = evaluation([NAN, NAN], [NAN, NAN])
    trainings = Trainings((3, 5), {**TRAININGS.by_method, "dcd": {**TRAININGS.by_method["dcd"], 5: empty}}, "student")
    assert trainings.tables()[0].rows[1][1:] == ("+10.00", DASH, DASH, DASH, DASH)


def test_one_training_has_no_spread() -> None:
    assert Trainings((3,), TRAININGS.by_method, "student").tables() == []
    assert seeds_told((3,)) == f"3 ({ONE_TRAINING})"
    assert seeds_told((3, 5)) == f"3, 5 ({AVERAGED})"


def test_scans_of_one_patient_are_averaged_first() -> None:
    student = evaluation([0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
    dcd = evaluation([0.6, 0.6], [0.6, 0.6], [0.3, 0.3])
    by_method = {"student": {3: student, 5: student}, "dcd": {3: dcd, 5: dcd}}
    over_cases = Trainings((3, 5), by_method, "student")
    over_patients = Trainings((3, 5), by_method, "student", patients=["a", "a", "b"])
    assert over_cases.differences("dcd", DICE) == pytest.approx([0.0, 0.0])
    assert over_patients.differences("dcd", DICE) == pytest.approx([-0.05, -0.05])
    assert "mean over patients" in over_patients.tables()[0].note
