"""The same seed gives the same losses to the last bit, interrupted or not."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import nnunet_folders
from tests.distillation.objectives.test_every_objective import TRAINERS
from tests.training.tiny_trainer import close_epoch, ready, save, steps, trainer
from tests.training.tiny_training import SHORT, train, without_pictures, write_tiny_dataset

OBJECTIVES_AT_WORK = {
    **{name: arguments for name, arguments in TRAINERS.items() if name not in ("freekd", "all at once")},
    "freekd, tuning": ["nnUNetTrainerFreeKD", "objectives.freekd.prompt_iterations=4"],
    "freekd, distilling": ["nnUNetTrainerFreeKD", "objectives.freekd.prompt_iterations=1"],
    "all at once": TRAINERS["all at once"],
}


def begin_epoch(made: DistillationTrainer) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        made.on_train_epoch_start()


@pytest.mark.parametrize("objective", OBJECTIVES_AT_WORK)
def test_every_objective_stepped_by_hand(plans: dict, objective: str) -> None:
    name, *assignments = OBJECTIVES_AT_WORK[objective]

    def two_epochs() -> tuple[DistillationTrainer, list[float]]:
        made = ready(name, plans, *assignments)
        losses = steps(made, 3)
        close_epoch(made)
        return made, losses

    first, losses = two_epochs()
    path = save(first)
    begin_epoch(first)
    expected = steps(first, 3, first_seed=10)
    again, same_losses = two_epochs()
    assert same_losses == losses
    begin_epoch(again)
    assert steps(again, 3, first_seed=10) == expected

    # nothing but the checkpoint and the settings may carry over
    torch.manual_seed(123)
    resumed = trainer(name, plans, "seed=1", *assignments, continue_training=True)
    resumed.load_checkpoint(str(path))
    resumed.prepare_distillation()
    begin_epoch(resumed)
    assert steps(resumed, 3, first_seed=10) == expected
    first.history.close_epoch(1)
    resumed.history.close_epoch(1)
    assert resumed.history.epochs == first.history.epochs


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("options", [(), ("ema=0.9",)])
def test_nnunets_loop_with_its_loader_and_augmentation(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    assignments = (*SHORT, "epochs=5", "save_every=1", "objectives.fopro.explore_every=1", *options)

    def interrupt(made: DistillationTrainer) -> None:
        real = made.train_step

        def train_step(batch: dict[str, Any]) -> dict[str, Any]:
            if made.current_epoch == 3 and made._steps_in_epoch == 1:
                raise _Interrupted
            return real(batch)

        monkeypatch.setattr(made, "train_step", train_step)

    def validated(made: DistillationTrainer) -> list[Any]:
        return [made.logger.get_value(key, None) for key in ("train_losses", "val_losses", "mean_fg_dice")]

    with nnunet_folders(tmp_path / "a"):
        write_tiny_dataset()
        whole = train("nnUNetTrainerFoPro", assignments)
    with nnunet_folders(tmp_path / "b"):
        write_tiny_dataset()
        with pytest.raises(_Interrupted):
            train("nnUNetTrainerFoPro", assignments, before=interrupt)
        resumed = train("nnUNetTrainerFoPro", assignments, continued=True)
    assert len(whole.history.epochs) == 5
    assert resumed.history.epochs == whole.history.epochs
    assert validated(resumed) == validated(whole)
    weights = [made.network.state_dict() for made in (whole, resumed)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    with nnunet_folders(tmp_path / "c"):
        write_tiny_dataset()
        other = train("nnUNetTrainerFoPro", (*assignments, "seed=6"))
    assert other.history.epochs != whole.history.epochs
