"""nnU-Net's trainer so that nothing is lost: interrupted, damaged, out of memory, in several processes.

It knows nothing of distillation; a subclass says what else belongs into a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.distillation.settings import Settings
from nnunet_kd.errors import TrainingStopped
from nnunet_kd.models.checkpoint import CLIPPED, PREVIOUS, mean_share
from nnunet_kd.nnunet.checkpoints import LATEST
from nnunet_kd.nnunet.prediction import remove_probabilities
from nnunet_kd.nnunet.training import CLIPPED_NORM, wrapped_for
from nnunet_kd.system.cores import computing_threads
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import remove_leftovers
from nnunet_kd.system.memory import freed_memory_kept
from nnunet_kd.training.checkpointed import CheckpointedTrainer
from nnunet_kd.training.clipped_steps import ClippedSteps
from nnunet_kd.training.distributed import check_batch_size, gather, process_device, rank_zero_first
from nnunet_kd.training.random_states import random_states, restore_random_states
from nnunet_kd.training.skipped_steps import SkippedSteps


class ResumableTrainer(CheckpointedTrainer):
    """Every hook calls nnU-Net's own and adds to it.

    Attributes:
        settings: the run's resolved settings, set by the subclass before this constructor runs.
        skipped_steps, clipped_steps: once there is an optimizer.
        terms: the present step's detached loss terms by name, kept by the subclass while nnU-Net computes its loss.
    """

    settings: Settings
    # of nnU-Net's constructor
    configuration_manager: Any
    output_folder: str
    output_folder_base: str
    grad_scaler: torch.amp.GradScaler | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, which it inspects
    ) -> None:
        self.continued = bool(plans["continue_training"])  # nnU-Net's constructor takes it out
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            self.device = process_device(device)
            if self.device.type != "cuda":
                self.grad_scaler = None
        if self.settings.save_every is not None:
            self.save_every = self.settings.save_every
        self.skipped_steps: SkippedSteps | None = None
        self.clipped_steps: ClippedSteps | None = None
        self.terms: dict[str, torch.Tensor] = {}
        self._random_states: list[dict[str, Any]] | None = None
        self._steps_in_epoch = 0
        self._trained = False

    # what a subclass adds ---------------------------------------------------------------------------------------------

    def checkpoint_entry(self) -> dict[str, Any]:
        """Also random numbers, and how often gradients were clipped."""
        shares = [] if self.clipped_steps is None else self.clipped_steps.shares
        return {**super().checkpoint_entry(), "random_states": self._random_states, CLIPPED: shares}

    def memory_users(self) -> list[str]:
        """What can be lowered when memory is full, the easiest first."""
        return [f"the batch size in the plan (now {self.configuration_manager.batch_size}; needs a new training)"]

    def deployed_weights(self) -> AbstractContextManager[object]:
        """Within, the network holds the weights that are to be saved as its own."""
        return contextlib.nullcontext()

    # start ------------------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """nnU-Net's own, on whatever device this process has."""
        if self.is_ddp:
            check_batch_size(self.configuration_manager.batch_size)
        with wrapped_for(self.device):
            super().initialize()
        self.skipped_steps = SkippedSteps(self.optimizer, self.grad_scaler)
        self.clipped_steps = ClippedSteps(self.optimizer, self.network)  # behind the other's hook

    def on_train_start(self) -> None:
        """nnU-Net's own; then random numbers go on where the loaded checkpoint's stopped."""
        if self.is_ddp:
            with rank_zero_first():
                self.do_split()  # which writes the splits if there are none yet
        if self.device.type == "cpu":
            # nnUNetv2_train takes every core of the machine, so that two trainings beside each other wait for one another
            torch.set_num_threads(computing_threads())
        super().on_train_start()
        self._trained = True
        if self.local_rank == 0:
            remove_leftovers(Path(self.output_folder))
        states = self.restored.get("random_states")
        if states is not None and not restore_random_states(states, self.device):
            self.print_to_log_file("The number of processes has changed, so random numbers start anew.")

    def run_training(self) -> None:
        """nnU-Net's loop."""
        with freed_memory_kept(self.device.type == "cpu"):
            super().run_training()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's prediction of the validation cases.

        Probabilities that another training left beside the segmentations that are replaced are deleted.
        """
        with self.results_of_a_trial_apart(), freed_memory_kept(self.device.type == "cpu"):
            if self._trained and not save_probabilities and self.local_rank == 0:
                for path in Path(self.output_folder).glob("validation/*.npz"):
                    remove_probabilities(path.parent, path.stem)
            super().perform_actual_validation(save_probabilities)

    @contextlib.contextmanager
    def results_of_a_trial_apart(self) -> Iterator[None]:
        """Within, a training that saves nothing (``--disable_checkpointing``) leaves a fold that has checkpoints as it is.

        nnU-Net deletes the latest checkpoint at a training's end, and replaces validation and what a cascade's next stage reads.
        These go into ``trial_fold_X`` beside the fold.
        """
        before = self.output_folder, self.output_folder_base
        fold = Path(self.output_folder)
        if self._trained and self.disable_checkpointing and any(fold.glob("checkpoint_*.pth")):
            apart = fold.with_name(f"trial_{fold.name}")
            apart.mkdir(exist_ok=True)
            self.output_folder = self.output_folder_base = str(apart)
        try:
            yield
        finally:
            self.output_folder, self.output_folder_base = before

    # step -------------------------------------------------------------------------------------------------------------

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, and whether it was ``skipped``.

        Raises:
            TrainingStopped: memory is full, or too many steps in a row were skipped; weights are saved.
        """
        assert self.skipped_steps is not None
        self._steps_in_epoch += 1
        self.skipped_steps.start_step()
        with self.stopped_when_memory_is_full():
            result: dict[str, Any] = super().train_step(batch)
        skipped = self.skipped_steps.finish_step(self.terms, [str(case) for case in batch.get("keys", [])])
        if skipped and self.skipped_steps.consecutive >= self.settings.max_skipped_steps:
            # which all processes do, and none ends before the first one has saved
            last, saved = self.skipped_steps.describe_last(), gather(self._save_weights_reached())[0]
            raise TrainingStopped(
                f"{self.skipped_steps.consecutive} steps in a row were skipped because their loss or gradient was not finite, so "
                f"that nothing is learned any more. The last one: {last}. {saved} Look at those cases "
                f"(nnUNetv2_plan_and_preprocess --verify_dataset_integrity), lower the named objective's weight or "
                f"learning_rate with --set and continue with --c, or raise max_skipped_steps."
            )
        return {**result, "skipped": skipped}

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's own; see :meth:`train_step` for a full memory."""
        with self.stopped_when_memory_is_full():
            result: dict[str, Any] = super().validation_step(batch)
        return result

    @contextlib.contextmanager
    def stopped_when_memory_is_full(self) -> Iterator[None]:
        """Within, a full memory ends the training with the weights saved and an error that says what to lower."""
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingStopped(
                f"the memory of {self.device} is full in epoch {self.current_epoch}, iteration {self._steps_in_epoch - 1}: "
                f"{str(error).splitlines()[0]} {self._save_weights_reached()} What can be lowered: "
                f"{'; '.join(self.memory_users())}. Other programs on the same GPU (nvidia-smi) count too."
            ) from error

    def _save_weights_reached(self) -> str:
        """Save within an epoch, which is begun anew when the run is continued; returns a sentence about it.

        Only the first of several processes saves.
        """
        assert self.skipped_steps is not None
        if self.disable_checkpointing or self.skipped_steps.taken == 0:
            return "There was nothing to save yet; checkpoints from before are untouched."
        if self.local_rank != 0:
            return "This process saves no weights; checkpoints from before are untouched."
        path = Path(self.output_folder) / LATEST
        self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
        try:
            with self.deployed_weights():
                self.save_checkpoint(str(path))
        finally:
            self.current_epoch += 1
        return f"The weights reached are in {path}."

    # epoch ------------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Also count iterations anew."""
        super().on_train_epoch_start()
        self._steps_in_epoch = 0

    def go_to_iteration(self, iteration: int) -> None:
        """Take the next step as that of the epoch's iteration ``iteration``, from 0 (benchmarks)."""
        self._steps_in_epoch = iteration

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's own, with skipped steps told but not averaged."""
        assert self.skipped_steps is not None
        losses = [{"loss": output["loss"]} for output in train_outputs]
        taken = [loss for loss, output in zip(losses, train_outputs, strict=True) if not output.get("skipped")]
        super().on_train_epoch_end(taken or losses)
        skipped, why = self.skipped_steps.close_epoch()
        if skipped:
            self.print_to_log_file(
                f"{skipped} of {counted(len(losses), 'step')} skipped, loss or gradient not finite: {why}"
            )
        assert self.clipped_steps is not None
        clipped = self.clipped_steps.close_epoch(self.current_epoch)
        if not math.isnan(clipped):
            self.print_to_log_file(f"Steps whose gradient was clipped: {clipped:.0%}")
        if self.local_rank == 0:
            for logger in self.logger.loggers:
                logger.log("kd/skipped_steps", skipped, self.current_epoch)
                logger.log("kd/clipped_steps", clipped, self.current_epoch)

    def on_epoch_end(self) -> None:
        """What is saved here goes on with the random numbers of the next epoch."""
        self._random_states = random_states(self.device)
        super().on_epoch_end()

    def on_train_end(self) -> None:
        """Keep no more checkpoints than nnU-Net does, and say how often gradients were clipped."""
        with self.results_of_a_trial_apart():
            super().on_train_end()
        if self.clipped_steps is not None and not math.isnan(share := mean_share(self.clipped_steps.shares)):
            self.print_to_log_file(
                f"Steps whose gradient was clipped (norm above {CLIPPED_NORM:g}): {share:.1%} of the whole training"
            )
        if self.local_rank == 0 and not self.disable_checkpointing:
            (Path(self.output_folder) / PREVIOUS).unlink(missing_ok=True)

    # checkpoint -------------------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | Path) -> None:
        """Also random numbers, and how often gradients were clipped."""
        super().load_checkpoint(checkpoint)
        if self.restored_from is not None:
            assert self.clipped_steps is not None  # nnU-Net initialises before it loads
            self.clipped_steps.shares = list(self.restored.get(CLIPPED, []))[: self.current_epoch]
            self._random_states = self.restored.get("random_states")
