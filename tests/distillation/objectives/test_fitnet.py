"""FitNet against a loop over voxels."""

from __future__ import annotations

import numpy as np
import pytest

from tests.distillation.objectives.steps import (
    check_gradients,
    identical_networks,
    make,
    make_step,
    set_identity,
    total,
)


def test_equals_a_loop_over_voxels() -> None:
    step, objective = make_step(), make("fitnet")
    expected = 0.0
    for student, teacher, phi in zip(step.student_features, step.teacher_features, objective.projections, strict=True):
        errors = []
        for image, *place in np.ndindex(len(student), *student.shape[2:]):
            at = (image, slice(None), *place)
            errors += [(teacher[at].numpy() - phi.weight.detach().numpy() @ student[at].numpy()) ** 2]
        expected += np.mean(errors)
    terms = objective(step)
    assert list(terms) == ["stage0", "stage1"]
    assert total(objective, step).item() == pytest.approx(expected, rel=1e-10)


def test_gradients() -> None:
    check_gradients(make("fitnet"), make_step())


def test_zero_where_the_two_agree() -> None:
    networks, step = identical_networks()
    objective = make("fitnet", networks)
    set_identity(objective)
    assert total(objective, step).item() == pytest.approx(0, abs=1e-20)
