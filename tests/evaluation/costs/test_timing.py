"""Timing in turn: what counts, and in which order."""

from __future__ import annotations

import time

from nnunet_kd.evaluation.costs.profiling import Latency
from nnunet_kd.evaluation.costs.timing import Timing, time_in_turn


def test_warm_up_is_left_out() -> None:
    waits = iter([0.2, 0.0, 0.0, 0.0])
    timings = time_in_turn({"a": lambda: time.sleep(next(waits))}, repeats=3, warm_up=1, device="cpu")
    assert max(timings["a"].seconds) < 0.1
    assert len(timings["a"].seconds) == 3
    assert next(waits, None) is None


def test_work_takes_turns() -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    work = {"fast": lambda: run("fast", 0.0), "slow": lambda: run("slow", 0.02)}
    timings = time_in_turn(work, repeats=3, warm_up=1)
    assert order == ["fast", "slow"] * 4
    assert timings["slow"].median >= 0.02 > timings["fast"].median


def test_a_latency_holds_the_quartiles() -> None:
    assert Latency.of(Timing((0.5, 0.1, 0.3, 0.2, 0.4))) == Latency(0.3, 0.2, 0.4, 5)
