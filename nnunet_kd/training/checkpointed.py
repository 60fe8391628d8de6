"""nnU-Net's trainer whose checkpoints hold more, survive damage, and know which training they are of."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.settings_sources import SETTINGS_FILE
from nnunet_kd.errors import CheckpointError
from nnunet_kd.models.checkpoint import ENTRY, TRAINING, newest_checkpoint, read_checkpoint, save_with_entry
from nnunet_kd.nnunet.checkpoints import FINAL, as_file, trained_plans
from nnunet_kd.training.begun import Begun


class CheckpointedTrainer(nnUNetTrainer):
    """Saves and loads; a subclass says what else belongs into a checkpoint.

    Attributes:
        begun: which training this is, from its start on; ``None``: an older version began it. With ``--c`` the subclass sets it
            before, to the one that began last in this folder.
        continued: begun with ``--c``; a subclass sets it in its constructor.
        restored: the loaded checkpoint's entry of ours.
        restored_from: its file; ``None``: none was loaded.
    """

    begun: Begun | None = None
    continued: bool = False
    restored: Mapping[str, Any] = MappingProxyType({})
    restored_from: Path | None = None
    _damaged: frozenset[Path] = frozenset()

    # what a subclass adds ---------------------------------------------------------------------------------------------

    def checkpoint_entry(self) -> dict[str, Any]:
        """What a checkpoint holds beyond nnU-Net's: plain containers, numbers and tensors."""
        return {} if self.begun is None else {TRAINING: self.begun.name}

    def prepare_for(self, entry: Mapping[str, Any]) -> None:
        """Called before the network is built for a checkpoint, with its entry of ours."""

    # checkpoint -------------------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """A plain nnU-Net checkpoint with one extra entry, :meth:`checkpoint_entry`."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return

        def save(buffer: io.BytesIO) -> None:
            super(CheckpointedTrainer, self).save_checkpoint(buffer)

        # a damaged file is not worth keeping in place of a whole one
        save_with_entry(save, self.checkpoint_entry(), Path(filename), keep=Path(filename) not in self._damaged)
        self._damaged -= {Path(filename)}

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | Path) -> None:
        """nnU-Net's own, with the network as the checkpoint describes it.

        With ``--c`` it is the readable checkpoint that got furthest, whichever file nnU-Net asked for, of the training that began
        last in this folder. If that one has none yet, and the earlier one is finished, none is loaded, and it starts anew.

        Args:
            checkpoint: its file, or what is in it.

        Raises:
            CheckpointError: it is damaged or holds more than data; with ``--c``: so are all, or those there are of an earlier
                training that is not finished.
        """
        if self.continued and not self.was_initialized and not isinstance(checkpoint, dict):
            furthest = self._furthest_checkpoint(Path(checkpoint).parent)
            if furthest is None:
                return
            checkpoint = furthest
        with as_file(checkpoint) as path:
            self._load(path)

    def _load(self, path: Path) -> None:
        checkpoint = read_checkpoint(path)
        if not self.was_initialized:
            # --val is run without the settings of the training, and with another reduction the network would not fit
            self.plans_manager = PlansManager(trained_plans(checkpoint))
            self.configuration_manager = self.plans_manager.get_configuration(self.configuration_name)
            self.prepare_for(checkpoint.get(ENTRY, {}))
        super().load_checkpoint(str(path))
        self.restored, self.restored_from = checkpoint.get(ENTRY, {}), path
        if self.continued and self.restored:
            name = self.restored.get(TRAINING)
            known = self.begun is not None and self.begun.name == name
            self.begun = self.begun if known else None if name is None else Begun(name)

    def _furthest_checkpoint(self, folder: Path) -> Path | None:
        path, damaged = newest_checkpoint(folder, None if self.begun is None else self.begun.name)
        if path is None and not (folder / FINAL).is_file():
            raise CheckpointError(
                f"the training that began last in {folder} has saved no checkpoint yet, and those there are of an earlier one, "
                f"which is not finished. To go on with the earlier one, delete the line that begins with '# training' from "
                f"{folder / SETTINGS_FILE}, and give its settings. To train anew, leave --c out."
            )
        if path is None:
            self.print_to_log_file(
                f"WARNING: the training that began last in {folder} has saved no checkpoint yet, so it starts anew. Those "
                f"there are of an earlier training."
            )
            return None
        for problem in damaged.values():
            self.print_to_log_file(f"WARNING: {problem} Continuing from {path.name} instead.")
        self.print_to_log_file(f"Continuing from {path}.")
        self._damaged = frozenset(damaged)
        return path
