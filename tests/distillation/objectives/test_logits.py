"""Hinton's distillation against a loop over voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax

from nnunet_kd.distillation.objectives.base import NetworkPair
from nnunet_kd.distillation.targets import Targets
from nnunet_kd.errors import SettingsError
from nnunet_kd.losses.logits import _mean_by_class
from tests.distillation.objectives.steps import (
    HEADS,
    SHAPE,
    check_gradients,
    identical_networks,
    make,
    make_step,
    total,
)

REGIONS = NetworkPair((4, 6), (2, 3), 3, 1, HEADS, has_regions=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_equals_a_loop_over_voxels(temperature: float, ignored: bool, regions: bool) -> None:
    step = make_step()
    valid = torch.rand(2, 1, *SHAPE) < 0.6 if ignored else torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    step = replace(step, targets=Targets(step.targets.classes, valid if ignored else None, HEADS))
    sums = []
    for image, *place in np.argwhere(valid[:, 0].numpy()):
        at = (image, slice(None), *place)
        teacher, student = (z[at].numpy() / temperature for z in (step.teacher_logits, step.student_logits))
        if regions:
            pairs = [(expit(teacher), expit(student)), (expit(-teacher), expit(-student))]
            sums.append(sum(rel_entr(p, q).sum() for p, q in pairs))
        else:
            sums.append(rel_entr(softmax(teacher), softmax(student)).sum())
    objective = make(
        "logits", REGIONS if regions else NetworkPair((4, 6), (2, 3), 3, 1, HEADS), temperature=temperature
    )
    assert total(objective, step).item() == pytest.approx(temperature**2 * np.mean(sums), rel=1e-10)


def test_gradients() -> None:
    check_gradients(make("logits"), make_step())
    check_gradients(make("logits", REGIONS), make_step())


def test_zero_where_the_two_agree_and_blind_to_a_constant_per_voxel() -> None:
    _, step = identical_networks()
    assert total(make("logits"), step).item() == pytest.approx(0, abs=1e-12)
    shifted = replace(step, student_logits=step.student_logits + torch.randn(2, 1, *SHAPE).double())
    assert total(make("logits"), shifted).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_keeps_its_size_as_the_temperature_grows() -> None:
    step = make_step()
    sizes = []
    for temperature in (10.0, 100.0, 1000.0):
        logits = step.student_logits.clone().requires_grad_()
        total(make("logits", temperature=temperature), replace(step, student_logits=logits)).backward()
        sizes.append(logits.grad.norm().item())
    assert sizes[2] == pytest.approx(sizes[1], rel=0.02)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_a_patch_without_a_valid_voxel_gives_zero() -> None:
    step = make_step()
    nothing = torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    assert total(make("logits"), replace(step, targets=Targets(step.targets.classes, nothing, HEADS))).item() == 0


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_balanced_over_the_teachers_classes(ignored: bool, regions: bool) -> None:
    step = make_step()
    valid = torch.rand(2, 1, *SHAPE) < 0.6 if ignored else torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    step = replace(step, targets=Targets(step.targets.classes, valid if ignored else None, HEADS))
    by_class: dict[object, list[float]] = {}
    for image, *place in np.argwhere(valid[:, 0].numpy()):
        at = (image, slice(None), *place)
        raw, student = step.teacher_logits[at].numpy(), step.student_logits[at].numpy() / 2
        teacher = raw / 2
        if regions:
            pairs = [(expit(teacher), expit(student)), (expit(-teacher), expit(-student))]
            by_class.setdefault(tuple(raw > 0), []).append(sum(rel_entr(p, q).sum() for p, q in pairs))
        else:
            by_class.setdefault(raw.argmax(), []).append(rel_entr(softmax(teacher), softmax(student)).sum())
    assert len(by_class) > 1
    objective = make(
        "logits", REGIONS if regions else NetworkPair((4, 6), (2, 3), 3, 1, HEADS), temperature=2, balance="classes"
    )
    wanted = 4 * np.mean([np.mean(values) for values in by_class.values()])
    assert total(objective, step).item() == pytest.approx(wanted, rel=1e-10)


def test_voxels_of_a_class_are_counted_exactly() -> None:
    count = 2**24 + 2**23  # float32 stops counting ones at the first
    mean = _mean_by_class(torch.full((1, 1, count), 1e-3), torch.zeros(1, 1, count, dtype=torch.int64), 2, None)
    assert mean.dtype == torch.float32
    assert float(mean) == pytest.approx(1e-3, rel=1e-6)


def test_too_many_regions_to_balance_are_refused_before_the_first_step() -> None:
    networks = [NetworkPair((4, 6), (2, 3), 3, 1, count, has_regions=True) for count in (20, 21)]
    make("logits", networks[0], balance="classes")
    make("logits", networks[1])
    make("logits", replace(networks[1], has_regions=False), balance="classes")
    with pytest.raises(SettingsError, match=r"up to 20 regions, and this dataset has 21\. Set .*balance=voxels"):
        make("logits", networks[1], balance="classes")
