"""Minutes of every core row of the proof: all that a user waits for (docs/explanation-proof.md). Nothing else may run.

    python benchmarks/proof_minutes.py --keep benchmarks/results [--only hippocampus,acdc]

Through the real data, teachers, loaders and commands: what is done once before the first iteration, what ``nnunet-kd soften``
takes for all training cases, and three times 100 iterations of every row in turn. Minutes = once + iterations x median. Written
to ``proof-SWEEP/minutes.json``, which also says how many iterations the best row's minutes buy the plain student.

Needs what ``proof.py prepare`` made, and nnU-Net's three variables. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from proof import FOLD, HERE, QUEUE, Dataset, git, needs_soft_labels, soften
from proof_values import LONGER, PLAIN, SHARING

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE, merge
from nnunet_kd.distillation.soft_labels.student import sets_folder
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.nnunet.environment import method_trainer, variables_set_to
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.system.cores import computing_threads
from nnunet_kd.system.files import write_atomically
from nnunet_kd.system.processor import processor_name
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant, describe_sweep
from nnunet_kd.workflows.sweep.runs import assignments

CORE = ("hippocampus", "acdc")
ITERATIONS, ROUNDS = 100, 3


def ready_trainer(dataset: Dataset, description: SweepDescription, row: Variant, results: Path) -> tuple[Any, float]:
    """A row's trainer before its first iteration, and the seconds that this took."""
    pinned = {"teacher": {"path": str(dataset.teacher)}} if row.method != "student" else {}
    told = merge(merge(description.settings, row.settings), {"seed": 0, **pinned})
    variables = {
        SET_VARIABLE: json.dumps(assignments(told)),
        CONFIG_VARIABLE: row.recipe,
        "nnUNet_results": str(results),
    }
    with variables_set_to(variables):
        began = time.perf_counter()
        made: DistillationTrainer = trainer_of_dataset(
            dataset.name, "3d_fullres", int(FOLD), method_trainer(row.method), dataset.plans, torch.device("cpu")
        )
        made.disable_checkpointing = True
        made.on_train_start()
        made.on_train_epoch_start()
        return made, time.perf_counter() - began


def iterate(made: DistillationTrainer) -> None:
    """100 iterations with their loader."""
    for _ in range(ITERATIONS):
        made.train_step(next(made.dataloader_train))


def soften_seconds(dataset: Dataset, no_mirroring: bool) -> float:
    """Of ``nnunet-kd soften`` for all cases of the fold, beside the maps that the rows then read."""
    end_if_failed(soften(dataset, no_mirroring, "cpu"))
    preprocessed = Path(os.environ["nnUNet_preprocessed"], dataset.name)
    with tempfile.TemporaryDirectory(dir=preprocessed.parent.parent) as folder:
        beside = Path(folder, dataset.name)
        beside.mkdir()
        for path in preprocessed.iterdir():
            if path.name != sets_folder(preprocessed / "any").parent.name:
                (beside / path.name).symlink_to(path)
        with variables_set_to({"nnUNet_preprocessed": folder}):
            began = time.perf_counter()
            end_if_failed(soften(dataset, no_mirroring, "cpu"))
            return time.perf_counter() - began


def end_if_failed(code: int) -> None:
    """Of a command."""
    if code:
        sys.exit(code)


def reads_soft_labels(row: Variant) -> bool:
    """Whether this row needs what ``soften`` makes."""
    return needs_soft_labels({"variants": {"row": row.model_dump()}})


def measure(name: str, no_mirroring: bool, descriptions: Path) -> dict[str, Any]:
    """All core rows of one dataset."""
    dataset, description = QUEUE[name], describe_sweep(descriptions / f"proof-{name}.yaml", {})
    rows = {row: variant for row, variant in description.rows().items() if row != LONGER}
    softened = soften_seconds(dataset, no_mirroring) if any(map(reads_soft_labels, rows.values())) else 0.0
    trainers: dict[str, DistillationTrainer] = {}
    once: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for row, variant in rows.items():
            trainers[row], once[row] = ready_trainer(dataset, description, variant, Path(folder, row))
            once[row] += softened if reads_soft_labels(variant) else 0.0
        timings = time_in_turn({row: partial(iterate, one) for row, one in trainers.items()}, ROUNDS, title=name)
        for one in trainers.values():
            one.on_train_end()
    iterations = description.settings["epochs"] * description.settings["iterations_per_epoch"]
    each = {row: timing.median / ITERATIONS for row, timing in timings.items()}
    found: dict[str, Any] = {}
    for row in rows:
        seconds = once[row] + iterations * each[row]
        found[row] = {
            "once_seconds": once[row],
            "seconds_per_100": timings[row].seconds,
            "minutes": seconds / 60,
            "minutes_shared_by_five": (once[row] / SHARING + iterations * each[row]) / 60,
            "plain_iterations": round((seconds - once[PLAIN]) / each[PLAIN]),
        }
    return {
        "commit": git("rev-parse", "HEAD"),
        "processor": processor_name(),
        "threads": computing_threads(),
        "workers": os.environ["nnUNet_n_proc_DA"],
        "torch": torch.__version__,
        "iterations": iterations,
        "soften_seconds": softened,
        "rows": found,
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CORE), help="datasets, with commas")
    parser.add_argument("--no-mirroring", action="store_true", help="soft labels without mirrored passes")
    parser.add_argument("--descriptions", type=Path, default=HERE, help="the folder with proof-*.yaml")
    parser.add_argument("--keep", type=Path, required=True, help="where proof-SWEEP/minutes.json is written")
    options = parser.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in CORE]:
        sys.exit(f"--only: there is no dataset {unknown[0]!r}; there are {', '.join(CORE)}")
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    for name in options.only.split(","):
        found = measure(name, options.no_mirroring, options.descriptions)
        path = options.keep / f"proof-{name}" / "minutes.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=1)
        write_atomically(path, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        for row, values in found["rows"].items():
            print(f"{name}, {row}: {values['minutes']:.1f} minutes")


if __name__ == "__main__":
    main()
