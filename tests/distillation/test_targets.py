"""Class maps from nnU-Net's targets."""

from __future__ import annotations

import torch

from nnunet_kd.distillation.targets import read_targets


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
