"""Channel-wise distillation against a loop over channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from nnunet_kd.distillation.targets import Targets
from tests.distillation.objectives.steps import (
    HEADS,
    SHAPE,
    check_gradients,
    identical_networks,
    make,
    make_step,
    set_identity,
    total,
)


def slow(teacher: torch.Tensor, student: torch.Tensor, temperature: float, valid: torch.Tensor | None = None) -> float:
    divergences = []
    for image, channel in np.ndindex(*teacher.shape[:2]):
        inside = np.ones(teacher.shape[2:], bool) if valid is None else valid[image, 0].numpy()
        p, q = (softmax(maps[image, channel].numpy()[inside] / temperature) for maps in (teacher, student))
        divergences.append(rel_entr(p, q).sum())
    return temperature**2 * float(np.mean(divergences))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_equal_a_loop(temperature: float) -> None:
    step = make_step()
    found = total(make("cwd", temperature=temperature), step).item()
    assert found == pytest.approx(slow(step.teacher_logits, step.student_logits, temperature), rel=1e-9)


def test_ignored_voxels_are_left_out_of_both_distributions() -> None:
    step = make_step()
    valid = torch.rand(2, 1, *SHAPE) < 0.6
    step = replace(step, targets=Targets(step.targets.classes, valid, HEADS))
    assert total(make("cwd"), step).item() == pytest.approx(
        slow(step.teacher_logits, step.student_logits, 4.0, valid), rel=1e-9
    )
    nothing = replace(step, targets=Targets(step.targets.classes, torch.zeros_like(valid), HEADS))
    assert total(make("cwd"), nothing).item() == 0


def test_features_equal_a_loop() -> None:
    step, objective = make_step(), make("cwd", maps="features")
    projected = [phi(own).detach() for phi, own in zip(objective.projections, step.student_features, strict=True)]
    expected = sum(slow(t, s, 4.0) for t, s in zip(step.teacher_features, projected, strict=True))
    assert total(objective, step).item() == pytest.approx(expected, rel=1e-9)
    assert (objective.needs_teacher_features, objective.needs_teacher_logits) == (True, False)


def test_gradients() -> None:
    check_gradients(make("cwd"), make_step())
    check_gradients(make("cwd", maps="features"), make_step())


def test_zero_where_the_two_agree() -> None:
    networks, step = identical_networks()
    assert total(make("cwd"), step).item() == pytest.approx(0, abs=1e-12)
    objective = make("cwd", networks, maps="features")
    set_identity(objective)
    assert total(objective, step).item() == pytest.approx(0, abs=1e-12)
