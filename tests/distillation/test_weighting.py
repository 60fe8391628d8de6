"""Weights and schedules of objectives."""

from __future__ import annotations

import pytest
import torch

from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.settings_model import Schedule
from nnunet_kd.distillation.weighting import Distillation
from nnunet_kd.errors import SettingsError
from tests.distillation.objectives.steps import NETWORKS, make_step

WEIGHT, RAMP = 0.05, Schedule(kind="linear", start=0, length=4)


def gradients(name: str, epoch: int, **settings: object) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of what the objective learns, and of the student's features."""
    torch.manual_seed(3)
    chosen = OBJECTIVES[name].Settings(**settings)
    distillation = Distillation({name: chosen}, NETWORKS).double()
    step = make_step(epoch=epoch)
    for feature in step.student_features:
        feature.requires_grad_()
    learned = [parameter for parameter in distillation.parameters() if parameter.requires_grad]
    distillation(step)[0].backward()
    return [parameter.grad for parameter in learned], [feature.grad for feature in step.student_features]


@pytest.mark.parametrize("name", ["dcd", "fitnet", "fgbvd"])
def test_what_is_learned_may_learn_at_full_weight(name: str) -> None:
    whole, _ = gradients(name, 1, weight=1)
    weighted, student = gradients(name, 1, weight=WEIGHT, schedule=RAMP)
    unweighted, same_student = gradients(name, 1, weight=WEIGHT, schedule=RAMP, learns_at_full_weight=True)
    assert whole
    factor = WEIGHT * RAMP.factor(1)
    for full, small, own in zip(whole, weighted, unweighted, strict=True):
        torch.testing.assert_close(small, full * factor)
        torch.testing.assert_close(own, full)
    for expected, got in zip(student, same_student, strict=True):
        torch.testing.assert_close(got, expected)
        assert got.abs().sum() > 0


@pytest.mark.parametrize(("name", "settings"), [("logits", {}), ("dcd", {"projection": "fixed"})])
def test_what_learns_nothing_cannot_learn_at_full_weight(name: str, settings: dict) -> None:
    with pytest.raises(SettingsError, match=rf"objectives\.{name}\.learns_at_full_weight"):
        gradients(name, 0, learns_at_full_weight=True, **settings)


def test_every_third_iteration() -> None:
    distillation = Distillation({"logits": OBJECTIVES["logits"].Settings(every=3)}, NETWORKS).double()
    counts = [bool(distillation(make_step(iteration=place))[1]) for place in range(7)]
    assert counts == [True, False, False, True, False, False, True]


def test_soft_labels_take_their_share_from_the_labels() -> None:
    soft = OBJECTIVES["soft"].Settings(alpha=0.8, schedule=RAMP, every=2, source="live")
    distillation = Distillation({"soft": soft, "logits": OBJECTIVES["logits"].Settings()}, NETWORKS)
    shares = [distillation.labels_weight(epoch, iteration) for epoch, iteration in ((0, 0), (1, 0), (4, 0), (4, 1))]
    assert shares == pytest.approx([1, 0.8, 0.2, 1])
