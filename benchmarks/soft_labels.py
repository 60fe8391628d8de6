"""What soft labels cost: an epoch beside a plain one, and the maps that are computed once.

    python benchmarks/soft_labels.py                      # the hippocampus shape
    python benchmarks/soft_labels.py --shape brats2024 --cases 1 --repeats 2    # BraTS's plan; takes long on a CPU

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

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy import ndimage

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import Shape, nnunet_folders, write_untrained_teacher
from nnunet_kd.workflows.soften import SoftenOptions, soften

CONFIGURATION = "3d_fullres"
ITERATIONS = 10
ROWS = {
    "plain": ("nnUNetTrainerStudent", ()),
    "soft, stored maps": ("nnUNetTrainerSoft", ("start=random",)),
    "soft, live teacher": ("nnUNetTrainerSoft", ("start=random", "objectives.soft.source=live")),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[shape.value for shape in Shape], default=Shape.HIPPOCAMPUS.value)
    parser.add_argument("--cases", type=int, default=4, help="made-up training cases; one more validates")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each row")
    parser.add_argument("--rows", default=";".join(ROWS), help="separated by semicolons; plain is always there")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def write_cases(folder: Path, shape: Shape, count: int) -> dict[str, int]:
    """Made-up preprocessed cases of the plan's median size and their split; returns bytes by case."""
    plan = shape.plans["configurations"][CONFIGURATION]
    size = tuple(round(edge) for edge in plan["median_image_size_in_voxels"])
    channels = len(shape.dataset_json["channel_names"])
    labels = [value for value in shape.dataset_json["labels"].values() if value]
    random = np.random.default_rng(0)
    cases = folder / f"{shape.plans['plans_name']}_{CONFIGURATION}"
    for leftover in cases.glob("case.*"):
        leftover.unlink()
    found = {}
    names = [f"case_{place}" for place in range(count + 1)]
    for name in names:
        fields = np.stack([ndimage.gaussian_filter(random.standard_normal(size), 4) for _ in labels])
        segmentation = np.zeros(size, np.int8)
        for label, one in zip(labels, fields, strict=True):
            segmentation[one > np.quantile(one, 0.95)] = label
        data = random.standard_normal((channels, *size)).astype(np.float32) + segmentation
        properties = {"class_locations": {label: _places(segmentation, label, random) for label in labels}}
        nnUNetDatasetBlosc2.save_case(data, segmentation[None], properties, str(cases / name))
        found[name] = sum(path.stat().st_size for path in cases.glob(f"{name}*"))
    (folder / "dataset_fingerprint.json").write_text("{}")  # which nnU-Net copies beside its results
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:-1], "val": names[-1:]}]))
    return found


def _places(segmentation: np.ndarray, label: int, random: np.random.Generator) -> np.ndarray:
    """As nnU-Net's preprocessing keeps them: ``(N, 4)``, channel first, some thousands."""
    places = np.argwhere(segmentation[None] == label)
    return random.permutation(places)[:10000]


def trainer(dataset: str, name: str, assignments: tuple[str, ...], device: torch.device) -> DistillationTrainer:
    """Ready to train, loaders running."""
    os.environ[SET_VARIABLE] = json.dumps(["seed=0", *assignments])
    made: DistillationTrainer = trainer_of_dataset(dataset, CONFIGURATION, 0, name, "nnUNetPlans", device)
    made.on_train_start()
    made.on_train_epoch_start()
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
            write_untrained_teacher(shape.plans, CONFIGURATION, shape.dataset_json)
        dataset = str(shape.plans["dataset_name"])
        cases = write_cases(Path(root) / "nnUNet_preprocessed" / dataset, shape, options.cases)
        found: dict[str, Any] = {"shape": shape.value, "device": str(device), "threads": torch.get_num_threads()}
        for mirroring in (False, True):
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.perf_counter()
                made = soften(
                    lambda: trainer_of_dataset(dataset, CONFIGURATION, 0, "nnUNetTrainerSoft", "nnUNetPlans", device),
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
                prepared[name] = trainer(dataset, *row, device)
            maps = next(prepared["soft, stored maps"].dataloader_train)[KEY]
            found["maps of a batch in memory (bytes)"] = maps.nbytes
            work = {name: (lambda one=one: epoch(one)) for name, one in prepared.items()}
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
