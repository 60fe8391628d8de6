"""The losses' record and their picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_kd.training.history import LossHistory


def test_means_per_epoch_and_resuming() -> None:
    history = LossHistory()
    for value in (1.0, 3.0):
        history.add({"segmentation": torch.tensor(value)})
    history.add({"dcd": torch.tensor(5.0)})
    assert history.close_epoch(0) == {"segmentation": 2.0, "dcd": 5.0}
    history.add({"segmentation": torch.tensor(1.0)})
    history.close_epoch(1)
    history.add({"segmentation": torch.tensor(9.0)})
    history.close_epoch(1)  # the epoch is run again after resuming
    assert history.epochs == [{"segmentation": 2.0, "dcd": 5.0}, {"segmentation": 9.0}]


def test_epochs_of_which_nothing_is_known(tmp_path: Path) -> None:
    history = LossHistory()
    assert history.close_epoch(0) == {}
    history.draw(tmp_path / "distillation.png")
    assert not list(tmp_path.iterdir())
    history = LossHistory()  # continued from a checkpoint of stock nnU-Net
    history.add({"segmentation": torch.tensor(1.0)})
    history.close_epoch(3)
    assert history.epochs == [{}, {}, {}, {"segmentation": 1.0}]
    history.add({"segmentation": torch.tensor(2.0)})
    history.close_epoch(4)
    assert history.epochs[3:] == [{"segmentation": 1.0}, {"segmentation": 2.0}]
    history.draw(tmp_path / "distillation.png")
    assert (tmp_path / "distillation.png").is_file()


def test_lines_for_the_log() -> None:
    lines = LossHistory().describe({"segmentation": 0.5, "dcd": 0.3, "dcd/stage0": 0.1, "dcd/stage1": 0.2})
    assert lines == ["segmentation loss 0.5000", "dcd loss 0.3000 (stage0 0.1, stage1 0.2)"]


@pytest.mark.parametrize("epochs", [1, 3])
def test_picture(tmp_path: Path, epochs: int) -> None:
    history = LossHistory([{"segmentation": 0.5 - i, "dcd": 1.0, "dcd/stage0": 1e-3} for i in range(epochs)])
    history.epochs[0].pop("dcd")  # a schedule that starts later
    history.draw(tmp_path / "distillation.png")
    assert (tmp_path / "distillation.png").read_bytes().startswith(b"\x89PNG")
