"""Fitting projections where features are no numbers; that fitted ones lower losses is tested with the trainings."""

from __future__ import annotations

import pytest
import torch

from nnunet_kd.distillation.frozen_teacher import FrozenTeacher
from nnunet_kd.distillation.objectives.base import NetworkPair
from nnunet_kd.distillation.objectives.fitnet import FitNet, FitNetSettings
from nnunet_kd.distillation.starts.projections import fit_projections
from nnunet_kd.errors import TeacherError
from tests.distillation.starts.networks import images, network

WIDE, NARROW = (4, 6, 8, 8), (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), r"the teacher holds weights that are not finite \(encoder.stages.2.0.convs.1"),
        (
            3e38,
            r"the projection of fitnet at encoder stage 2 cannot be fitted: .*objectives.fitnet.projection_start=random",
        ),
    ],
    ids=["weights", "features"],
)
def test_a_teacher_that_is_not_finite_is_refused(value: float, told: str) -> None:
    options = {"dimensions": 2, "dtype": torch.float32, "eps": 1e-5}
    of_teacher, student = network(features=WIDE, **options), network(features=NARROW, **options)
    with torch.no_grad():
        of_teacher.encoder.stages[2][0].convs[1].norm.weight.fill_(value)
    teacher = FrozenTeacher(of_teacher, WIDE, torch.device("cpu"))
    objective = FitNet(FitNetSettings(), NetworkPair(teacher_channels=WIDE, student_channels=NARROW, dimensions=2))
    before = [projection.weight.clone() for projection in objective.projections]
    with pytest.raises(TeacherError, match=told):
        fit_projections({"fitnet": objective}, teacher, student, images(2, 2, torch.float32), 0)
    assert all(torch.equal(a, b.weight) for a, b in zip(before, objective.projections, strict=True))
    assert student.encoder.training
