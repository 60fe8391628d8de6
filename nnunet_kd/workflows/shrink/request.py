"""What is to be shrunk, with what, and where everything lies."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nnunet_kd.datasets.splits import groups_where_found
from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE, parse_assignments
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.environment import VARIABLES, variables_set_to
from nnunet_kd.system.cores import usable_cores

TRAINER = "nnUNetTrainerSoft"
SOURCE = "objectives.soft.source"
RESERVED = (
    "teacher", "reduction", "start", "start_sha256", "epochs", "iterations_per_epoch", "validation_iterations", "seed",
    "save_every", "patience", SOURCE, "objectives.soft.maps", "objectives.soft.allow_leak",
)  # fmt: skip
"""Settings that the command itself decides."""


class Listener(Protocol):
    """Who is told what happens."""

    def step(self, title: str) -> None:
        """The next step begins."""

    def show(self, done: float, total: float, what: str) -> None:
        """How far it is."""

    def tell(self, line: str) -> None:
        """Something that a user wants to know."""

    def warn(self, line: str) -> None:
        """Something that a user must know."""


@dataclass(frozen=True)
class ShrinkRequest:
    """Arguments of :func:`~nnunet_kd.workflows.shrink.run.shrink`.

    Attributes:
        model: zip or model folder of the teacher.
        images: folder.
        output: folder; made if need be.
        reduction: of the channels.
        configuration: of a model with several; ``None``: the only one.
        minutes: wall-clock time for everything; ``None``: as long as ``iterations`` take.
        iterations: of the training; ``None``: fitted to ``minutes``.
        labels: folder with segmentations of some or all images; ``None``: there are none.
        group_regex: finds the patient in a case's name; ``None``: every image is a patient.
        seed: of weights, patches and augmentation; ``None``: not seeded.
        device: cpu, cuda or mps.
        mirroring: of all predictions; ``None``: yes, unless the soft labels would then take too much of ``minutes``.
        allow_empty: go on if the teacher finds nothing in most images.
        trusted: load checkpoints that hold more than data.
        assignments: further settings of the training, ``key=value``.
    """

    model: Path
    images: Path
    output: Path
    reduction: float = 4.0
    configuration: str | None = None
    minutes: float | None = None
    iterations: int | None = None
    labels: Path | None = None
    group_regex: str | None = None
    seed: int | None = None
    device: str = "cpu"
    mirroring: bool | None = None
    allow_empty: bool = False
    trusted: bool = False
    assignments: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise a SettingsError for arguments that do not hold, or exclude each other."""
        if (self.minutes is None) == (self.iterations is None):
            raise SettingsError(
                "give either --minutes or --iterations: how long everything, or the training, may take."
            )
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise SettingsError(f"--minutes must be a number above 0, got {self.minutes:g}.")
        if self.iterations is not None and self.iterations < 1:
            raise SettingsError(f"--iterations must be at least 1, got {self.iterations}.")
        if not 1 < self.reduction < math.inf:
            raise SettingsError(f"-r must be a number above 1, or nothing gets smaller, got {self.reduction:g}.")
        if self.seed is not None and self.seed < 0:
            raise SettingsError(f"--seed must be 0 or more, got {self.seed}.")
        if self.group_regex is not None:
            groups_where_found([], self.group_regex)
        taken = [key for key in _keys(parse_assignments(list(self.assignments))) if key in RESERVED]
        if SOURCE in taken:
            raise SettingsError(
                f"--set {SOURCE}: shrink decides that itself. Its soft labels are always stored, since images without labels "
                f"have no others. Leave that setting out."
            )
        if taken:
            raise SettingsError(
                f"--set {taken[0]}: shrink decides that itself, from MODEL, -r, --minutes, --iterations and --seed."
            )


def _keys(settings: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Every key of nested settings, with its parents: ``objectives``, ``objectives.soft``, ``objectives.soft.alpha``."""
    for key, value in settings.items():
        yield f"{within}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{within}{key}.")


@dataclass(frozen=True)
class Places:
    """Where what lies in an output folder.

    Attributes:
        output: the folder.
    """

    output: Path

    @property
    def work(self) -> Path:
        """Everything that may be deleted when all is done."""
        return self.output / "work"

    @property
    def state(self) -> Path:
        """What was asked for, and what is fixed."""
        return self.work / "state.json"

    def model(self, digest: str) -> Path:
        """An unpacked archive of this SHA-256."""
        return self.work / "model" / digest[:12]

    @property
    def start(self) -> Path:
        """The student before training, a model folder."""
        return self.work / "start"

    @property
    def log(self) -> Path:
        """What nnU-Net prints."""
        return self.work / "nnunet.log"

    def predictions(self, who: str) -> Path:
        """Segmentations of the images kept aside, of ``teacher`` or ``student``."""
        return self.work / "predictions" / who

    @property
    def student_zip(self) -> Path:
        """For stock nnU-Net."""
        return self.output / "student.zip"

    @property
    def student_onnx(self) -> Path:
        """For ONNX runtimes, with its JSON."""
        return self.output / "student.onnx"

    @property
    def report(self) -> Path:
        """The page."""
        return self.output / "report.html"

    @property
    def agreement(self) -> Path:
        """Its numbers."""
        return self.output / "agreement.json"

    def preprocessed(self, dataset: str) -> Path:
        """The dataset's folder in the place of ``nnUNet_preprocessed``."""
        return self.work / "nnUNet_preprocessed" / dataset

    @contextmanager
    def as_nnunet_folders(self, assignments: str | None = None) -> Iterator[None]:
        """nnU-Net's variables within this folder, whatever the user's are, and no settings but ``assignments`` (JSON)."""
        folders: dict[str, str | None] = {name: str(self.work.absolute() / name) for name in VARIABLES}
        for folder in folders.values():
            Path(str(folder)).mkdir(parents=True, exist_ok=True)
        own: dict[str, str | None] = {CONFIG_VARIABLE: None, SET_VARIABLE: assignments, "nnUNet_wandb_enabled": None}
        with variables_set_to({**folders, **own}):
            yield


def loader_variables(device: str) -> dict[str, str | None]:
    """``nnUNet_n_proc_DA`` where the user has not set it: on a CPU, loader and training share the cores."""
    if device != "cpu" or os.environ.get("nnUNet_n_proc_DA"):
        return {}
    return {"nnUNet_n_proc_DA": str(max(1, usable_cores() // 4))}


def plain(value: Any) -> Any:
    """A path or tuple as JSON takes it."""
    if isinstance(value, Path):
        return str(value.expanduser().resolve())
    return list(value) if isinstance(value, tuple) else value
