"""``nnunet-kd bench step``: what distillation adds to a training step, every part measured in one run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.bench.measure import forget_peak, peak_resident_bytes, resident_bytes, time_in_turn
from nnunet_kd.bench.pair import DATASET_JSON, make_trainer, nnunet_folders, random_batch, write_untrained_teacher
from nnunet_kd.environment import find_trainer, trainer_names
from nnunet_kd.plans import read_plans
from nnunet_kd.settings import SET_VARIABLE
from nnunet_kd.shipped import shipped_folder
from nnunet_kd.trainer import DistillationTrainer

CONFIGURATION = "3d_fullres"
STUDENT = "nnUNetTrainerStudent"
FIRST_ITERATION, SECOND_ITERATION = 0, 1


@dataclass(frozen=True)
class Variant:
    """One row of the table: a trainer in one of its phases.

    Attributes:
        name: of the row.
        trainer: the shipped trainer.
        exploring: an exploration step (FoPro's prompts, FreeKD's tuning) instead of a plain distillation step.
    """

    name: str
    trainer: str
    exploring: bool = False

    def assignments(self) -> list[str]:
        """The settings that put the trainer into the phase."""
        if self.trainer != "nnUNetTrainerFreeKD":
            return []
        return [f"objectives.freekd.prompt_iterations={10**9 if self.exploring else 0}"]


def variants(trainers: Sequence[str]) -> list[Variant]:
    """One row per trainer, and one more for each that explores."""
    rows = []
    for trainer in trainers:
        rows.append(Variant(trainer, trainer))
        if trainer in ("nnUNetTrainerFoPro", "nnUNetTrainerFreeKD"):
            rows.append(Variant(f"{trainer}, exploring", trainer, exploring=True))
    return rows


def all_trainers() -> list[str]:
    """Every shipped trainer with objectives of its own, DCD first."""
    named = [name for name in trainer_names() if find_trainer(name).objectives]
    return sorted(named, key=lambda name: (name != "nnUNetTrainerDCD", name))


def measure_steps(
    trainers: Sequence[str], repeats: int = 10, device: torch.device | None = None, memory: bool = True
) -> dict[str, Any]:
    """One training step of trainers and its floor, at the hippocampus shape (batch 2, patch 40x56x40, r=4).

    Args:
        trainers: shipped trainers with objectives.
        repeats: counted runs of each part.
        device: default CPU.
        memory: also measure each one's peak memory, in a process of its own.

    Returns:
        Median seconds of the plain student's step, of the teacher's encoder and whole forward pass; and per row of
        :func:`variants` the median of its step, ``ratio`` to (student step + the teacher's forward it needs), and peak memory
        in bytes beyond that of the imported libraries.
    """
    device = device or torch.device("cpu")
    rows = variants(trainers)
    with _pairs(rows, device) as (student, prepared):
        image = random_batch(student)["data"].to(device)
        batch = random_batch(student)
        teacher = next(iter(prepared.values())).advice.teachers.members[0]  # type: ignore[union-attr]
        work: dict[str, Callable[[], object]] = {
            "student step": lambda: student.train_step(batch),
            "teacher encoder": lambda: teacher.features(image),
            "teacher forward": lambda: teacher.outputs(image),
        }
        for row in rows:
            work[row.name] = _step(prepared[row.name], batch, row.exploring)
        timings = time_in_turn(work, repeats, device, warm_up=2)
        forwards = {row.name: _forward_needed(prepared[row.name]) for row in rows}
    seconds = {name: timing.median for name, timing in timings.items()}
    return {
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seconds": seconds,
        "spread": {name: str(timing) for name, timing in timings.items()},
        "forward": forwards,
        "ratio": {
            row.name: seconds[row.name] / (seconds["student step"] + seconds[forwards[row.name]]) for row in rows
        },
        "peak bytes": _peaks([Variant(STUDENT, STUDENT), *rows], device) if memory else {},
    }


@contextlib.contextmanager
def _pairs(
    rows: Sequence[Variant], device: torch.device
) -> Iterator[tuple[DistillationTrainer, dict[str, DistillationTrainer]]]:
    """The plain student's trainer and one per row, ready to train, all with the same untrained teacher."""
    plans = read_plans(shipped_folder("plans") / "reference" / "hippocampus.json")
    with tempfile.TemporaryDirectory() as root, nnunet_folders(Path(root)), contextlib.redirect_stdout(io.StringIO()):
        write_untrained_teacher(plans, CONFIGURATION, DATASET_JSON)
        made = {}
        for row in [Variant(STUDENT, STUDENT), *rows]:
            os.environ[SET_VARIABLE] = json.dumps(["seed=0", *row.assignments()])
            trainer = make_trainer(row.trainer, plans, CONFIGURATION, DATASET_JSON, device)
            trainer.prepare_distillation()
            trainer.network.train()
            made[row.name] = trainer
        yield made.pop(STUDENT), made


def _step(trainer: DistillationTrainer, batch: dict[str, Any], exploring: bool) -> Callable[[], object]:
    """FoPro explores in the first iteration of a training and not in the second."""

    def run() -> None:
        trainer._steps_in_epoch = FIRST_ITERATION if exploring else SECOND_ITERATION
        trainer.train_step(batch)

    return run


def _forward_needed(trainer: DistillationTrainer) -> str:
    assert trainer.advice is not None
    objectives = trainer.advice.distillation.all_objectives().values()
    return "teacher forward" if any(objective.needs_teacher_logits for objective in objectives) else "teacher encoder"


def _peaks(rows: Sequence[Variant], device: torch.device) -> dict[str, int]:
    """Peak memory of two steps of each row, each in a fresh process."""
    peaks = {}
    for row in rows:
        arguments = [sys.executable, "-m", "nnunet_kd.bench.step", json.dumps(asdict(row)), str(device)]
        result = subprocess.run(arguments, check=True, capture_output=True, text=True)
        peaks[row.name] = int(result.stdout.strip().splitlines()[-1])
    return peaks


def _measure_peak(row: Variant, device: torch.device) -> int:
    before = resident_bytes()
    with _pairs([] if row.trainer == STUDENT else [row], device) as (student, prepared):
        trainer = prepared.get(row.name, student)
        batch = random_batch(trainer)
        run = _step(trainer, batch, row.exploring)
        forget_peak()
        run()
        run()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes() - before


if __name__ == "__main__":
    print(_measure_peak(Variant(**json.loads(sys.argv[1])), torch.device(sys.argv[2])))
