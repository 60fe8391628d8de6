"""What soft labels cost: an epoch beside a plain one, and the maps that are computed once.

    python benchmarks/soft_labels.py                      # the hippocampus shape
    python benchmarks/soft_labels.py --shape brats2024 --cases 1 --repeats 1    # BraTS's plan; half an hour on a CPU

Made-up cases of the plan's median size, an untrained teacher, and every part through its own loader. Epochs of 10 iterations of
the plain student, of ``soft`` with stored maps and of ``soft`` with the teacher running (``source: live``) take turns. The table
gives the ratio to the plain epoch, what ``nnunet-kd soften`` takes for a case with and without mirroring, and a map's size: on
disk beside the preprocessed case's, and in the memory of a batch. Blobs stand for organs.

Batches are made in the training's own process, so that all of a loader's work counts in its epoch. Worker processes would also
work while the other rows are timed. An untrained teacher's maps say little of a trained one's size on disk, which
``nnunet-kd soften`` tells.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from made_up import write_made_up_dataset

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.system.memory import freed_memory_kept
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import HIPPOCAMPUS, Shape, nnunet_folders
from nnunet_kd.workflows.soften import SoftenOptions, soften

ITERATIONS = 10
ROWS = {
    "plain": ("nnUNetTrainerStudent", ()),
    "soft, stored maps": ("nnUNetTrainerSoft", ("start=random",)),
    "soft, live teacher": ("nnUNetTrainerSoft", ("start=random", "objectives.soft.source=live")),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=HIPPOCAMPUS, help="as of nnunet-kd bench step")
    parser.add_argument("--cases", type=int, default=4, help="made-up training cases; one more validates")
    parser.add_argument(
        "--repeats", type=int, default=25, help="epochs of each row; few say little, as augmentation is drawn"
    )
    parser.add_argument("--rows", default=";".join(ROWS), help="separated by semicolons; plain is always there")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def trainer(shape: Shape, name: str, assignments: tuple[str, ...], device: torch.device) -> DistillationTrainer:
    """Ready to train, loaders running."""
    os.environ[SET_VARIABLE] = json.dumps(["seed=0", *assignments])
    made = new_trainer(shape, name, device)
    made.on_train_start()
    made.on_train_epoch_start()
    return made


def new_trainer(shape: Shape, name: str, device: torch.device) -> DistillationTrainer:
    """Of the made-up dataset, as nnU-Net makes it."""
    plans = shape.plans
    made: DistillationTrainer = trainer_of_dataset(
        plans["dataset_name"], shape.configuration_name, 0, name, plans["plans_name"], device
    )
    return made


def epoch(made: DistillationTrainer) -> None:
    """Ten iterations, loader included."""
    for _ in range(ITERATIONS):
        made.train_step(next(made.dataloader_train))


def main() -> None:
    """See the module."""
    options = parse()
    shape, device = Shape(options.shape), torch.device(options.device)
    rows = {name: ROWS[name] for name in ["plain", *options.rows.split(";")]}
    os.environ["nnUNet_n_proc_DA"] = "0"
    os.environ["nnUNet_compile"] = "f"
    with tempfile.TemporaryDirectory() as root, nnunet_folders(Path(root)):
        quiet = contextlib.redirect_stdout(io.StringIO())
        with quiet:
            cases = write_made_up_dataset(shape, options.cases)
        found: dict[str, Any] = {"shape": shape.name, "device": str(device), "threads": torch.get_num_threads()}
        for mirroring in (False, True):
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.perf_counter()
                made = soften(
                    lambda: new_trainer(shape, "nnUNetTrainerSoft", device),
                    TeacherSettings(),
                    SoftenOptions(mirroring=mirroring),
                    device,
                    lambda done, total, case: None,
                )
            seconds = (time.perf_counter() - start) / options.cases
            found[f"soften a case{', mirrored' if mirroring else ''} (s)"] = round(seconds, 2)
            found["map (bytes a case)"] = made.size // options.cases
            rows["soft, stored maps"] = (
                "nnUNetTrainerSoft", ("start=random", f"objectives.soft.maps={made.folder.name}")
            )  # fmt: skip
        found["preprocessed (bytes a case)"] = sum(cases.values()) // len(cases)
        prepared: dict[str, DistillationTrainer] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for name, row in rows.items():
                prepared[name] = trainer(shape, *row, device)
            maps = next(prepared["soft, stored maps"].dataloader_train)[KEY]
            found["maps of a batch in memory (bytes)"] = maps.nbytes
            work = {name: (lambda one=one: epoch(one)) for name, one in prepared.items()}
            with freed_memory_kept(device.type == "cpu"):  # as trainers train
                timings = time_in_turn(work, options.repeats, device, warm_up=1)
        plain = timings["plain"].median
        for name, timing in timings.items():
            found[f"{name}: epoch (s)"] = round(timing.median, 3)
            found[f"{name}: ratio"] = round(timing.median / plain, 3)
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
