"""Stopping by patience, through nnU-Net's own loop."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import random_batch
from tests.training.tiny_trainer import trainer

SHORT = ("seed=1", "epochs=8", "iterations_per_epoch=1", "validation_iterations=1", "objectives.fitnet.weight=0.1")


def run(made: DistillationTrainer, scores: list[float]) -> str:
    """The real loop with batches made up, and validations that give ``scores`` in turn."""

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            yield random_batch(made)

    def start() -> None:
        made.prepare_distillation()
        Path(made.output_folder).mkdir(parents=True, exist_ok=True)

    def validation_end(outputs: object) -> None:
        made.logger.log("mean_fg_dice", scores[made.current_epoch], made.current_epoch)
        made.logger.log("dice_per_class_or_region", [scores[made.current_epoch]], made.current_epoch)
        made.logger.log("val_losses", 0.0, made.current_epoch)

    made.on_train_start = start  # type: ignore[method-assign]
    made.on_validation_epoch_end = validation_end  # type: ignore[method-assign, assignment]
    made.dataloader_train = made.dataloader_val = batches()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        made.run_training()
    return out.getvalue()


def test_stops_when_validation_has_not_improved_and_stays_stopped(tiny: dict) -> None:
    made = trainer("nnUNetTrainerFitNet", tiny, "patience=3", *SHORT)
    said = run(made, [0.1, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    # nnU-Net's moving average is best at epoch 1 and worse in epochs 2, 3 and 4
    assert made.current_epoch == 5
    assert "Stopping early: no better validation for 3 epochs" in said
    final = Path(made.output_folder) / "checkpoint_final.pth"
    assert final.is_file()
    assert made.supervision is None
    assert not made.network.encoder._forward_hooks

    again = trainer("nnUNetTrainerFitNet", tiny, "patience=3", *SHORT)
    again.load_checkpoint(str(final))
    assert "had stopped early, after 5 epochs" in run(again, [0.0] * 8)
    assert again.current_epoch == 5

    longer = trainer("nnUNetTrainerFitNet", tiny, "patience=5", *SHORT)
    longer.load_checkpoint(str(final))
    run(longer, [0.0] * 8)
    assert longer.current_epoch == 7


def test_a_training_that_is_out_of_patience_when_it_is_continued_still_gets_its_final_checkpoint(tiny: dict) -> None:
    made = trainer("nnUNetTrainerFitNet", tiny, "save_every=1", "ema=0.5", *SHORT)
    with pytest.raises(IndexError):  # stopped in its fourth epoch
        run(made, [0.9, 0.0, 0.0])
    latest, final = (Path(made.output_folder) / f"checkpoint_{name}.pth" for name in ("latest", "final"))
    kept, saved = latest.read_bytes(), read_checkpoint(latest)
    for before in (None, b"of an earlier end"):
        latest.write_bytes(kept)
        if before is not None:
            final.write_bytes(before)
        again = trainer("nnUNetTrainerFitNet", tiny, "patience=2", "ema=0.5", *SHORT)
        again.load_checkpoint(str(latest))
        assert "had stopped early, after 3 epochs" in run(again, [])
        written = read_checkpoint(final)
        assert (written["current_epoch"], latest.exists()) == (3, False)
        assert all(
            torch.equal(value, written["network_weights"][name]) for name, value in saved["network_weights"].items()
        )


@pytest.mark.nightly
def test_runs_to_the_end_while_validation_improves_or_without_patience(tiny: dict) -> None:
    rising = trainer("nnUNetTrainerFitNet", tiny, "patience=1", *SHORT)
    assert "Stopping early" not in run(rising, [0.1 * epoch for epoch in range(8)])
    assert rising.current_epoch == 8
    without = trainer("nnUNetTrainerFitNet", tiny, *SHORT)
    run(without, [0.9] + [0.0] * 7)
    assert without.current_epoch == 8
