"""The averaged student forgets its start, and averages alike whether a run was stopped or not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nnunet_kd.training.ema import StudentAverage, warmed_up_decay


def left_of_the_start(decay: float, iterations: int) -> float:
    """By the average itself: the start is 1, and every weight after it 0."""
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
        average = StudentAverage(network, decay)
        network.weight.zero_()
        for iteration in range(iterations):
            average.update(iteration)
    return float(average.other_weights()["weight"])


def test_a_cold_start_is_forgotten_within_an_epoch() -> None:
    assert pytest.approx(0.78, abs=0.01) == 0.999**250  # what a decay of 0.999 alone leaves
    for iterations in (1, 10):
        left = math.factorial(9) * math.factorial(iterations) / math.factorial(iterations + 9)
        assert left_of_the_start(0.999, iterations) == pytest.approx(left, rel=1e-5)
    assert left_of_the_start(0.999, 10) < 2e-5
    assert left_of_the_start(0.999, 250) == pytest.approx(0, abs=1e-12)


def test_the_decay_asked_for_is_reached_and_kept() -> None:
    assert warmed_up_decay(0.999, 8988) < 0.999
    assert warmed_up_decay(0.999, 8990) == warmed_up_decay(0.999, 10**6) == 0.999
    assert warmed_up_decay(0.05, 0) == 0.05


def test_stopped_equals_unstopped() -> None:
    def trained(stop_after: int | None) -> torch.Tensor:
        torch.manual_seed(3)
        network = nn.Linear(2, 2)
        average = StudentAverage(network, 0.9)
        for iteration in range(6):
            if (
                iteration == stop_after
            ):  # as a trainer does: the average is in the network, and training weights come back
                weights = {name: value.clone() for name, value in network.state_dict().items()}
                average.swap()
                average = StudentAverage(network, 0.9)
                network.load_state_dict(weights)
            with torch.no_grad():
                network.weight.add_(torch.ones(2, 2) * (iteration + 1))
            average.update(iteration)
        return average.other_weights()["weight"]

    assert torch.equal(trained(None), trained(3))
