"""Core rows of the proof: what 100 iterations of each take, and what is paid once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerator_extent import Extent, device_peak, forget_device_peak, made_up_dataset, new_trainer, wait

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.nnunet.training import loader_processes
from nnunet_kd.workflows.bench.pair import Shape
from nnunet_kd.workflows.bench.rows import PLAIN_STUDENT
from nnunet_kd.workflows.soften import SoftenOptions, soften
from nnunet_kd.workflows.sweep.runs import assignments

Row = Callable[[], dict[str, Any]]
DCD, SOFT, INHERITED, KD = ("nnUNetTrainerDCD", "nnUNetTrainerSoft", "nnUNetTrainerInherited", "nnUNetTrainerKD")
CORE = {
    "plain": (PLAIN_STUDENT.trainer, "plain"),
    "random + DCD": (DCD, "random-dcd"),
    "inherited": (INHERITED, "inherited"),
    "inherited + soft": (SOFT, "inherited-soft"),
    "inherited + DCD": (DCD, "inherited-dcd"),
    "inherited + soft + DCD": (KD, "inherited-soft-dcd"),
}
"""Core rows of the proof: trainer, and name in its sweep. *Plain at the best row's minutes* has steps as plain's."""
DESCRIBED = Path(__file__).with_name("proof-hippocampus.yaml")
SOFT_LABELS = "soft labels"


def proof(extent: Extent) -> dict[str, Row]:
    """Seconds per 100 iterations of every core row, loaders included, and what is paid once."""
    rows: dict[str, Row] = {}
    for label, shape in (("ACDC", extent.cardiac), ("BraTS 2024", extent.large)):
        rows[f"{label}: {SOFT_LABELS}"] = partial(measure_soft_labels, shape, extent)
        for name, (trainer, row) in CORE.items():
            rows[f"{label}: {name}"] = partial(measure_row, shape, trainer, *settings_of(row), extent)
    return rows


def settings_of(row: str) -> tuple[tuple[str, ...], str]:
    """What the proof sets of a row, and its recipe, without the start's details (the defaults) and where soft labels lie."""
    described = yaml.safe_load(DESCRIBED.read_text())["variants"][row]
    settings = {key: value for key, value in described.get("settings", {}).items() if key != "inheritance"}
    if soft := settings.get("objectives", {}).get("soft"):
        soft.pop("maps", None)
    return tuple(assignments(settings)), described.get("recipe") or ""


def measure_soft_labels(shape: Shape, extent: Extent) -> dict[str, Any]:
    """Seconds of ``nnunet-kd soften`` for a case; maps that are there already are kept, and then nothing is measured."""
    with made_up_dataset(shape, extent):
        began = time.perf_counter()
        found = soften(
            partial(new_trainer, shape, SOFT, extent),
            TeacherSettings(),
            SoftenOptions(),
            extent.device,
            lambda done, total, case: None,
        )
        seconds, cases = time.perf_counter() - began, len(found.written)
        count = cases + len(found.kept)
        return {
            "seconds a case": seconds / cases if cases else None,
            "cases": cases,
            "bytes a case": found.size / count,
        }


def measure_row(shape: Shape, name: str, own: tuple[str, ...], recipe: str, extent: Extent) -> dict[str, Any]:
    """Iterations through nnU-Net's own loaders, after what is done once."""
    with made_up_dataset(shape, extent), variables_set_to({CONFIG_VARIABLE: recipe}):
        trainer = new_trainer(shape, name, extent, own)
        trainer.disable_checkpointing = True
        began = time.perf_counter()
        trainer.on_train_start()
        wait(extent.device)
        once = time.perf_counter() - began
        trainer.on_train_epoch_start()
        forget_device_peak(extent.device)

        def iterate(count: int) -> float:
            began = time.perf_counter()
            for _ in range(count):
                trainer.train_step(next(trainer.dataloader_train))
            wait(extent.device)
            return time.perf_counter() - began

        try:
            iterate(extent.warm_up)
            each = [100 / extent.iterations * iterate(extent.iterations) for _ in range(extent.rounds)]
            return {
                "seconds per 100 iterations": statistics.median(each),
                "least": min(each),
                "most": max(each),
                "seconds once": once,
                "loader processes": loader_processes()[0],
                "peak bytes": device_peak(extent.device),
                "settings": trainer.settings.as_dict(),
            }
        finally:
            trainer.on_train_end()  # which ends the loaders
