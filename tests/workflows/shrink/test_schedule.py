"""Iterations from minutes."""

from __future__ import annotations

import pytest

from nnunet_kd.workflows.shrink.schedule import (
    FEWEST_ITERATIONS,
    StepTimes,
    fitted_schedule,
    left_for_training,
    schedule_of,
)


@pytest.mark.parametrize(
    ("iterations", "epochs", "each"),
    [(1, 1, 1), (5, 1, 5), (20, 2, 10), (200, 20, 10), (2000, 20, 100), (10_000, 40, 250), (250_000, 1000, 250)],
)
def test_nnunets_schedule_in_short(iterations: int, epochs: int, each: int) -> None:
    found = schedule_of(iterations)
    assert (found.epochs, found.iterations_per_epoch, found.iterations) == (epochs, each, epochs * each)
    assert 1 <= found.validation_iterations <= 50


def test_what_does_not_divide_is_rounded() -> None:
    for iterations in range(1, 6000, 7):
        assert abs(schedule_of(iterations).iterations - iterations) <= max(10, iterations * 0.05)


def test_as_many_as_fit() -> None:
    times = StepTimes(iteration=0.2, validation=0.1, epoch=2.0)
    for seconds in (60, 600, 3600, 40_000):
        found = fitted_schedule(seconds, times)
        assert times.of(found) <= seconds
        assert times.of(schedule_of(round(found.iterations * 1.1) + 20)) > seconds
    assert fitted_schedule(0, times).iterations == FEWEST_ITERATIONS
    assert fitted_schedule(1e9, times).iterations == 250_000
    assert times.of(schedule_of(2000)) == pytest.approx(20 * (100 * 0.2 + 10 * 0.1 + 2.0))


def test_what_is_left() -> None:
    assert left_for_training(30, 300, 100, 1) == pytest.approx(0.95 * (1800 - 300 - 60 - 90))
    assert left_for_training(30, 300, 500, 5) == pytest.approx(0.95 * (1800 - 300 - 60 - 90))
