"""``sweep_run.json``: what a sweep knows of a run beyond what nnU-Net leaves behind; and what nnU-Net's logs tell."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

import nnunet_kd
from nnunet_kd.distillation.settings_model import SettingsModel
from nnunet_kd.errors import DataError
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import write_atomically

RECORD_FILE = "sweep_run.json"
LOG_FILE = "sweep_run.log"
EPOCH_FINISHED = re.compile(r"Epoch time: ([0-9.]+) s")
"""nnU-Net's line at an epoch's end, in its log and on the console."""
EPOCH_STARTED = re.compile(r": Epoch ([0-9]+)\s*$", re.MULTILINE)

RunState = Literal["running", "interrupted", "failed", "done"]


def software() -> dict[str, str]:
    """Versions of what trains."""
    names = ("nnunetv2", "torch", "numpy")
    return {
        "python": platform.python_version(),
        "nnunet_kd": nnunet_kd.__version__,
        **{name: version(name) for name in names},
    }


class RunRecord(SettingsModel):
    """One run over all its starts.

    It holds no name of a machine; the command holds the paths that it was given.
    """

    variant: str
    method: str
    fold: int | Literal["all"]
    seed: int
    command: list[str] = Field(description="that trained it last, as typed; nnUNet_results is the run's own root")
    device: str
    software: dict[str, str] = Field(description="versions at the last start")
    state: RunState = "running"
    starts: int = Field(0, description="how often it was started or continued")
    epochs_trained: int = Field(0, description="over all starts; more than the run has where epochs were repeated")
    training_seconds: float = Field(0.0, description="nnU-Net's `Epoch time`, summed over all starts")
    command_seconds: float = Field(0.0, description="of the whole commands, with start and validation, over all starts")
    exit_code: int | None = Field(None, description="of the last start")
    pretrained_sha256: str | None = Field(None, description="of the weights that it started from; none: random ones")
    checkpoint_sha256: str | None = Field(None, description="of checkpoint_final.pth")

    def write(self, folder: Path) -> None:
        """Replace the record in a fold's folder."""
        write_atomically(folder / RECORD_FILE, lambda file: file.write(self.model_dump_json(indent=2).encode()))


def read_record(folder: Path) -> RunRecord | None:
    """The record in a fold's folder; ``None`` if there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} is not a sweep's record ({counted(error.error_count(), 'problem')}). Delete it: only the run's "
            f"training time is lost."
        ) from error


def epoch_seconds(folder: Path) -> list[float]:
    """Duration of every epoch in a fold's folder that nnU-Net's logs tell of, repeated ones included."""
    logs = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("training_log_*.txt")))
    return [float(seconds) for log in logs for seconds in EPOCH_FINISHED.findall(log)]
