"""Class maps from nnU-Net's targets."""

from __future__ import annotations

import pytest
import torch

from nnunet_kd.distillation.targets import Targets, TargetsOnDemand, read_targets
from nnunet_kd.workflows.bench.pair import random_batch
from tests.training.tiny_trainer import ready


def test_labels_with_and_without_ignored_voxels() -> None:
    target = torch.tensor([[[0.0, 1, 2, 3]]])
    plain = read_targets(target, False, None, 4)
    assert (plain.classes.tolist(), plain.valid, plain.count) == ([[0, 1, 2, 3]], None, 4)
    ignoring = read_targets(target, False, 3, 3)
    assert ignoring.classes.tolist() == [[0, 1, 2, 0]]
    assert ignoring.valid.tolist() == [[[True, True, True, False]]]


def test_regions_become_the_last_region_that_contains_the_voxel() -> None:
    target = torch.tensor([[[0.0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]])
    assert read_targets(target, True, None, 3).classes.tolist() == [[0, 1, 2, 3]]
    for ignore in (target[:, 2:], target[:, 2:].bool()):
        found = read_targets(torch.cat([target[:, :2].to(ignore.dtype), ignore], 1), True, 3, 2)
        assert found.classes.tolist() == [[0, 1, 2, 0]]
        assert found.valid.tolist() == [[[True, True, True, False]]]
        assert found.count == 3


def test_targets_are_read_once_and_only_when_looked_at() -> None:
    read = []

    def find() -> Targets:
        read.append(1)
        return Targets(torch.zeros(1, 2, dtype=torch.long), None, 4)

    targets = TargetsOnDemand(find)
    assert read == []
    assert (targets.classes.shape, targets.valid, targets.count) == ((1, 2), None, 4)
    assert read == [1]
    with pytest.raises(AttributeError, match="labels"):
        _ = targets.labels


@pytest.mark.parametrize(("name", "expected"), [("nnUNetTrainerDCD", 0), ("nnUNetTrainerIFVD", 1)])
def test_objectives_on_features_alone_read_none(
    tiny: dict, name: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = read_targets
    monkeypatch.setattr(
        "nnunet_kd.distillation.supervision.read_targets", lambda *given: read.append(1) or real(*given)
    )
    made = ready(name, tiny)
    made.train_step(random_batch(made))
    assert len(read) == expected
