"""IFVD against loops over classes and voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_kd.distillation.targets import Targets
from tests.distillation.objectives.steps import (
    HALF,
    HEADS,
    SHAPE,
    check_gradients,
    identical_networks,
    make,
    make_step,
    total,
)


def nearest(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, size in enumerate(shape):
        places = [int(np.floor(place * values.shape[axis] / size)) for place in range(size)]
        values = values.take(places, axis)
    return values


def slow_maps(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    similarity = np.zeros(labels.shape)
    for label in range(HEADS):
        places = np.argwhere(labels == label)
        if not len(places):
            continue
        prototype = np.mean([features[(slice(None), *place)] for place in places], axis=0)
        for place in places:
            own = features[(slice(None), *place)]
            similarity[tuple(place)] = own @ prototype / np.linalg.norm(own) / np.linalg.norm(prototype)
    return similarity


@pytest.mark.parametrize("ignored", [False, True])
def test_equals_loops(ignored: bool) -> None:
    step = make_step()
    valid = torch.rand(2, 1, *SHAPE) < 0.7
    step = replace(step, targets=Targets(step.targets.classes, valid if ignored else None, HEADS))
    terms = make("ifvd")(step)
    for index, shape in enumerate((SHAPE, HALF)):
        squares = []
        for image in range(2):
            labels = nearest(step.targets.classes[image].numpy(), shape)
            if ignored:
                labels = np.where(nearest(valid[image, 0].numpy(), shape), labels, -1)
            student, teacher = (f[index][image].numpy() for f in (step.student_features, step.teacher_features))
            difference = slow_maps(student, labels) - slow_maps(teacher, labels)
            squares += list(difference[labels >= 0] ** 2)
        assert terms[f"stage{index}"].item() == pytest.approx(np.mean(squares), rel=1e-9)


def test_gradients() -> None:
    check_gradients(make("ifvd"), make_step())


def test_invariants() -> None:
    networks, step = identical_networks()
    objective = make("ifvd", networks)
    assert total(objective, step).item() == pytest.approx(0, abs=1e-20)
    larger = replace(step, student_features=[7 * feature for feature in step.student_features])
    assert total(objective, larger).item() == pytest.approx(0, abs=1e-20)
    assert not list(objective.parameters())
