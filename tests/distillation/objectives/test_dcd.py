"""DCD as an objective: every setting reaches the loss, which tests/losses compares with the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunet_kd.losses.detail_loss import detail_loss
from tests.distillation.objectives.steps import make, make_step, total

SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"wavelet": "haar"}, {"wavelet": "haar"}),
    ({"levels": 1}, {"levels": 1}),
    ({"mode": "zero"}, {"mode": "zero"}),
    ({"bands": "S"}, {"bands": "S"}),
    ({"bands": "A"}, {"bands": "A"}),
    ({"bands": "all"}, {"bands": "all"}),
    ({"per_level": True}, {"per_level": True}),
    ({"idwt": False}, {"inverse": False}),
]
"""Of the objective, and what they are called in the loss."""


def by_stage(settings: dict[str, Any], **of_loss: Any) -> list[torch.Tensor]:
    """The loss of every stage, of the objective's own projections."""
    objective, step = make("dcd", **settings), make_step()
    return [
        detail_loss(teacher, student, projection.weight, **of_loss)
        for student, teacher, projection in zip(
            step.student_features, step.teacher_features, objective.projections, strict=True
        )
    ]


@pytest.mark.parametrize(("settings", "of_loss"), SETTINGS)
def test_a_setting_is_what_the_loss_is_given(settings: dict[str, Any], of_loss: dict[str, Any]) -> None:
    terms = make("dcd", **settings)(make_step())
    assert list(terms) == ["stage0", "stage1"]
    for found, wanted in zip(terms.values(), by_stage(settings, **of_loss), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    assert total(make("dcd", **settings), make_step()).item() != pytest.approx(total(make("dcd"), make_step()).item())


def test_the_mean_over_stages_is_a_share_of_their_sum() -> None:
    summed, mean = make("dcd")(make_step()), make("dcd", stages="mean")(make_step())
    for name, value in summed.items():
        torch.testing.assert_close(mean[name], value / 2)
