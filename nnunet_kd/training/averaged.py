"""nnU-Net's trainer with weights averaged over iterations, and an end when validation no longer improves.

Both are about which weights are validated and deployed; neither knows of distillation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.counts import counted
from nnunet_kd.training.ema import StudentAverage
from nnunet_kd.training.resumable import ResumableTrainer


class _StoppedEarly(Exception):
    """Leaves nnU-Net's loop over epochs."""


class AveragedTrainer(ResumableTrainer):
    """Every hook calls nnU-Net's own and adds to it; without ``ema`` and ``patience`` in the settings, nothing.

    Attributes:
        average: of the network's weights (EMA), once :meth:`prepare_average` was called; ``None`` without EMA.
    """

    average: StudentAverage | None = None

    def prepare_average(self) -> None:
        """Start or restore the average, with the weights in training in the network; once that is initialized."""
        network = plain_module(self.network)
        if self.settings.ema is not None:
            self.average = StudentAverage(network, self.settings.ema)
        if "training_weights" in self.restored:
            network.load_state_dict(self.restored["training_weights"])

    @contextlib.contextmanager
    def deployed_weights(self) -> Iterator[None]:
        """With EMA, the average."""
        before = self.average is not None and self.average.in_use
        self._use_average(True)
        try:
            yield
        finally:
            self._use_average(before)

    def _use_average(self, wanted: bool) -> None:
        if self.average is not None and self.average.in_use != wanted:
            self.average.swap()

    def checkpoint_entry(self) -> dict[str, Any]:
        """Also, with EMA, the weights in training."""
        entry = super().checkpoint_entry()
        if self.average is not None and self.average.in_use:
            entry["training_weights"] = self.average.other_weights()
        return entry

    def run_training(self) -> None:
        """nnU-Net's loop, which `patience` may end before its last epoch, or before its first."""
        if self._is_out_of_patience():
            self.print_to_log_file(f"Training had stopped early, after {counted(self.current_epoch, 'epoch')}.")
            if self.restored_from != Path(self.output_folder) / FINAL and not self.disable_checkpointing:
                self.on_train_start()  # the end of a training needs all that there is within one
                self.on_train_end()
            return
        try:
            super().run_training()
        except _StoppedEarly:
            self.on_train_end()

    def _is_out_of_patience(self) -> bool:
        if self.settings.patience is None or self.current_epoch == 0:
            return False
        validated = self.logger.get_value("ema_fg_dice", step=None)[: self.current_epoch]
        return len(validated) - 1 - int(np.argmax(validated)) >= self.settings.patience

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, which the average takes in unless it was skipped."""
        result = super().train_step(batch)
        if self.average is not None and not result["skipped"]:
            self.average.update(self.current_epoch * self.num_iterations_per_epoch + self._steps_in_epoch - 1)
        return result

    def on_validation_epoch_start(self) -> None:
        """With EMA, the average is what is validated and saved."""
        self._use_average(True)
        super().on_validation_epoch_start()

    def on_epoch_end(self) -> None:
        """Go on with the weights in training, or stop early."""
        super().on_epoch_end()
        self._use_average(False)
        if self._is_out_of_patience() and self.current_epoch < self.num_epochs:
            assert self.settings.patience is not None
            self.print_to_log_file(
                f"Stopping early: no better validation for {counted(self.settings.patience, 'epoch')}."
            )
            raise _StoppedEarly

    def on_train_end(self) -> None:
        """With EMA, the average stays in the network."""
        self._use_average(True)
        super().on_train_end()
