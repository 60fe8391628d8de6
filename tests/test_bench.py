"""The benchmarks run and report what they say; their times are never tested."""

from __future__ import annotations

import pytest

from nnunet_kd.bench.loss import measure_memory, measure_speed
from nnunet_kd.bench.measure import time_in_turn
from nnunet_kd.bench.step import measure_step


def test_loss_agrees_with_ptwt_where_it_is_timed() -> None:
    result = measure_speed((1, 4, 10, 12, 8), repeats=1)
    assert result["largest relative difference"] < 1e-5
    assert set(result["seconds"]) == {"ptwt, zero", "nnunet-kd, zero", "nnunet-kd, periodization"}


@pytest.mark.slow
def test_memory_stays_below_three_times_the_features() -> None:
    result = measure_memory()
    assert result["features"] == 2 * 40 * 128**3 * 4
    assert 1 < result["ratio"] < 3


def test_step_measures_every_part() -> None:
    result = measure_step(repeats=1)
    assert set(result["seconds"]) == {"student step", "teacher encoder", "objectives", "distillation step"}
    floor = result["seconds"]["student step"] + result["seconds"]["teacher encoder"]
    assert result["ratio"] == pytest.approx(result["seconds"]["distillation step"] / floor)


def test_work_is_timed_in_turn() -> None:
    order: list[str] = []
    timings = time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2, warm_up=1)
    assert order == ["a", "b"] * 3
    assert len(timings["a"].seconds) == 2
