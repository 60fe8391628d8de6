"""How many steps had their gradient clipped, counted behind nnU-Net's back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.nnunet.training import CLIPPED_NORM
from nnunet_kd.training.clipped_steps import ClippedSteps
from nnunet_kd.workflows.bench.pair import nnunet_folders
from tests.training.tiny_trainer import ready, steps
from tests.training.tiny_training import SHORT, train, without_pictures, write_tiny_dataset


class Scaled(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.factor = loss, 1.0

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.factor * self.loss(*values)


def test_clipped_are_those_steps_whose_gradient_was_too_long(tiny: dict) -> None:
    made = ready("nnUNetTrainerStudent", tiny)
    scaled = made.loss.segmentation = Scaled(made.loss.segmentation)
    norms = []
    for factor in (1e-3, 1e5, 1e5, 1e5):
        scaled.factor = factor
        steps(made, 1)
        gradients = [one.grad for one in made.network.parameters() if one.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
    assert norms[0] < CLIPPED_NORM / 2
    assert norms[1:] == pytest.approx([CLIPPED_NORM] * 3, rel=1e-5), "nnU-Net clips at another norm"
    scaled.factor = float("nan")
    steps(made, 1)  # is skipped, and no step
    assert made.clipped_steps is not None
    assert made.clipped_steps.close_epoch(0) == 0.75
    assert math.isnan(made.clipped_steps.close_epoch(1))
    assert made.checkpoint_entry()["clipped_steps"][0] == 0.75


def test_an_epoch_that_is_run_again_replaces_its_share() -> None:
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters())
    counted = ClippedSteps(optimizer, network)
    for epoch, gradient in ((1, 100.0), (2, 0.1), (1, 0.1)):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        counted.close_epoch(epoch)
    assert math.isnan(counted.shares[0]), "of an older run"
    assert counted.shares[1:] == [0.0]


def test_it_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nnunet_folders(tmp_path):
        write_tiny_dataset()
        without_pictures(monkeypatch)
        trained = train("nnUNetTrainerStudent", [*SHORT, "epochs=1"])
        entry = read_checkpoint(Path(trained.output_folder) / "checkpoint_final.pth")["nnunet_kd"]
        (share,) = entry["clipped_steps"]
        assert 0 <= share <= 1
        told = f"Steps whose gradient was clipped (norm above 12): {share:.1%} of the whole training"
        assert told in Path(trained.log_file).read_text()
        continued = train("nnUNetTrainerStudent", [*SHORT, "epochs=2"], continued=True)
        assert continued.clipped_steps is not None
        assert continued.clipped_steps.shares[0] == share
        assert len(continued.clipped_steps.shares) == 2
