"""How much ``accelerator.sh`` measures: the real shapes on a GPU, or toy ones of the same kinds for a dry run."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from made_up import write_made_up_dataset

from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.nnunet.training import patch_loader, trainer_of_dataset
from nnunet_kd.system.memory import forget_peak, peak_resident_bytes
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import (
    BRATS2024,
    CONFIGURATION,
    DATASET_FILE,
    HIPPOCAMPUS,
    PLANS_FILE,
    Shape,
    nnunet_folders,
    random_batch,
)

CARDIAC = Path(__file__).with_name("shapes") / "acdc"
TOY_STAGES, TOY_CHANNELS, TOY_EDGE = 3, (8, 16, 16), 2


@dataclass(frozen=True)
class Extent:
    """What is measured at, where, and how often.

    Attributes:
        device: to measure on.
        work: folder for made-up data and models, which nobody needs afterwards.
        small, large, cardiac: shapes: hippocampus, BraTS 2024, ACDC.
        steps: of every trainer.
        repeats: counted runs of each part of a step.
        iterations, rounds, warm_up: of a row of the proof: counted iterations, how often, and iterations before.
        cases: made-up training cases of each shape.
        processes: that train together.
        apart: what is measured in processes of its own gets them; otherwise all is done in this one.
        settings: of every trainer.
        variables: environment variables.
    """

    device: torch.device
    work: Path
    small: Shape
    large: Shape
    cardiac: Shape
    steps: int = 20
    repeats: int = 10
    iterations: int = 100
    rounds: int = 3
    warm_up: int = 20
    cases: int = 4
    processes: int = 2
    apart: bool = True
    settings: tuple[str, ...] = ("seed=0",)
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether mixed precision and compilation are to be expected."""
        return self.device.type == "cuda"


def real_extent(device: torch.device, work: Path) -> Extent:
    """What is worth measuring."""
    return Extent(device, work, Shape(HIPPOCAMPUS), Shape(BRATS2024), Shape(str(CARDIAC)))


def toy_extent(device: torch.device, work: Path) -> Extent:
    """The same with networks of three narrow stages, in one process: it finds what would fail, and its figures mean nothing."""
    small, large, cardiac = (
        toy_shape(Shape(name), work / "toys" / Path(name).name) for name in (HIPPOCAMPUS, BRATS2024, str(CARDIAC))
    )
    return Extent(
        device,
        work,
        small,
        large,
        cardiac,
        steps=8,
        repeats=1,
        iterations=2,
        rounds=1,
        warm_up=1,
        cases=2,
        processes=1,
        apart=False,
        settings=("seed=0", "inheritance.voxels=1024"),
        variables=(("nnUNet_n_proc_DA", "0"), ("nnUNet_def_n_proc", "1")),
    )


def toy_shape(shape: Shape, folder: Path) -> Shape:
    """A plan of the same kind, written to ``folder``: kernels, strides, blocks' kind, channels and labels are its own."""
    plans = copy.deepcopy(shape.plans)
    configuration = plans["configurations"][CONFIGURATION]
    own = configuration["architecture"]["arch_kwargs"]
    for key, value in own.items():
        if isinstance(value, list):
            own[key] = value[: TOY_STAGES - (key == "n_conv_per_stage_decoder")]
    own["n_stages"], own["features_per_stage"] = TOY_STAGES, list(TOY_CHANNELS)
    for key in ("n_blocks_per_stage", "n_conv_per_stage"):
        if key in own:
            own[key] = [1] * TOY_STAGES
    strides = torch.tensor(own["strides"]).prod(0)
    configuration["patch_size"] = (TOY_EDGE * strides).tolist()
    configuration["median_image_size_in_voxels"] = (TOY_EDGE * strides).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLANS_FILE).write_text(json.dumps(plans))
    (folder / DATASET_FILE).write_text(json.dumps(shape.dataset_json))
    return Shape(str(folder))


@contextlib.contextmanager
def made_up_dataset(shape: Shape, extent: Extent) -> Iterator[None]:
    """Within, nnU-Net's folders hold a made-up dataset of the shape, which is written once."""
    root = extent.work / str(shape.plans["dataset_name"])
    root.mkdir(parents=True, exist_ok=True)
    whole = root / "whole"
    with nnunet_folders(root), variables_set_to(dict(extent.variables)):
        if not whole.is_file():
            write_made_up_dataset(shape, extent.cases)
            whole.touch()
        yield


def new_trainer(
    shape: Shape, name: str, extent: Extent, assignments: Sequence[str] = (), device: torch.device | None = None
) -> DistillationTrainer:
    """A trainer of the made-up dataset, as nnU-Net makes it."""
    os.environ[SET_VARIABLE] = json.dumps([*extent.settings, *assignments])
    plans = shape.plans
    made: DistillationTrainer = trainer_of_dataset(
        plans["dataset_name"], CONFIGURATION, 0, name, plans["plans_name"], device or extent.device
    )
    return made


def labelled_batch(trainer: DistillationTrainer) -> dict[str, Any]:
    """A whole batch of the made-up cases, not augmented; maps of soft labels, where they are asked for, are random."""
    loader = patch_loader(trainer, augmented=False, foreground_share=trainer.oversample_foreground_percent)
    patches = [next(loader) for _ in range(int(trainer.configuration_manager.batch_size))]
    targets = [torch.cat(scale) for scale in zip(*(patch["target"] for patch in patches), strict=True)]
    batch = {"data": torch.cat([patch["data"] for patch in patches]), "target": targets}
    drawn = random_batch(trainer)
    return batch | ({KEY: drawn[KEY]} if KEY in drawn else {})


def part_of_batch(batch: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """What one of several processes gets of a batch."""
    count = len(batch["data"])
    mine = slice(rank * count // size, (rank + 1) * count // size)
    return {
        key: [one[mine] for one in value] if isinstance(value, list) else value[mine] for key, value in batch.items()
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_device_peak(device: torch.device) -> None:
    """Start :func:`device_peak` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak()


def device_peak(device: torch.device) -> int:
    """Bytes: CUDA's allocator's, else of this process, libraries included."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
