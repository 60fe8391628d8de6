"""One training of a sweep: where it lies, and what is on disk of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from nnunet_kd.distillation.starts.pretrained import PretrainedWeights
from nnunet_kd.errors import MissingRequirement
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.workflows.sweep.record import EPOCH_FINISHED, EPOCH_STARTED, read_record

State = Literal["todo", "running", "done", "failed"]


@dataclass(frozen=True)
class PlannedRun:
    """One training of a sweep.

    Attributes:
        variant: the row it belongs to.
        method: of ``nnunet-kd train``.
        fold, seed: as in the description.
        epochs: that it has when it is done, unless ``patience`` ends it earlier.
        device: to train on.
        results: its own ``nnUNet_results``.
        folder: nnU-Net's folder of the fold in it.
        arguments: of ``nnunet-kd``, without ``--c``, ``--val`` or ``-pretrained_weights``, which depend on what is on disk.
        settings: what ``distillation_settings.yaml`` must say.
        pretrained: what it starts from; ``None``: random weights.
    """

    variant: str
    method: str
    fold: int | str
    seed: int
    epochs: int
    device: str
    results: Path
    folder: Path
    arguments: tuple[str, ...]
    settings: Mapping[str, Any] = field(compare=False)
    pretrained: PretrainedWeights | None = None

    def __str__(self) -> str:
        return f"{self.variant}, fold {self.fold}, seed {self.seed}"

    @property
    def trained(self) -> bool:
        """Whether nnU-Net finished its last epoch."""
        return (self.folder / FINAL).is_file()

    @property
    def done(self) -> bool:
        """Whether training and validation are finished."""
        return self.trained and (self.folder / "validation" / "summary.json").is_file()

    def lock(self, wait: float) -> FileLock:
        """Held by whoever trains the run; lets go of itself when that process ends.

        Args:
            wait: seconds to wait for it.
        """
        return FileLock(self.results / f".fold_{self.fold}.lock", timeout=wait)

    def state(self) -> State:
        """What is on disk of it."""
        if self._is_locked():
            return "running"
        if self.done:
            return "done"
        record = read_record(self.folder)
        return "failed" if record is not None and record.state == "failed" else "todo"

    def _is_locked(self) -> bool:
        if not self.results.is_dir():
            return False
        try:
            with self.lock(0):
                return False
        except Timeout:
            return True
        except PermissionError as error:
            raise MissingRequirement(
                f"{self.results} cannot be written to, so nothing tells whether another process trains there. Change its "
                f"permissions, or set nnUNet_results to another folder."
            ) from error
        except NotImplementedError as error:
            raise MissingRequirement(
                f"the file system of {self.results} has no file locks, which keep two sweeps from training the same run. "
                f"Mount it with them, or put nnUNet_results elsewhere."
            ) from error

    def epochs_finished(self) -> int:
        """The furthest epoch that nnU-Net's logs tell of; a run that is continued starts at its latest checkpoint."""
        finished = 0
        for log in self.folder.glob("training_log_*.txt"):
            text = log.read_text(encoding="utf-8", errors="replace")
            ended = [match.start() for match in EPOCH_FINISHED.finditer(text)]
            started = [int(match[1]) for match in EPOCH_STARTED.finditer(text) if ended and match.start() < ended[-1]]
            finished = max([finished, *(epoch + 1 for epoch in started)])
        return finished
