"""Core rows of the proof: what 100 iterations of each take, and what is paid once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerator_extent import Extent, device_peak, forget_device_peak, made_up_dataset, new_trainer, wait

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.nnunet.training import loader_processes
from nnunet_kd.workflows.bench.pair import Shape
from nnunet_kd.workflows.bench.rows import PLAIN_STUDENT
from nnunet_kd.workflows.soften import SoftenOptions, soften

Row = Callable[[], dict[str, Any]]
DCD, SOFT, INHERITED, KD = ("nnUNetTrainerDCD", "nnUNetTrainerSoft", "nnUNetTrainerInherited", "nnUNetTrainerKD")
CORE: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": (PLAIN_STUDENT.trainer, ()),
    "random + DCD": (DCD, ("start=random",)),
    "inherited": (INHERITED, ()),
    "inherited + soft": (SOFT, ()),
    "inherited + DCD": (DCD, ()),
    "inherited + soft + DCD": (KD, ("objectives.soft.alpha=0.5", "objectives.dcd.weight=0.05")),
}
"""Core rows of the proof; *plain at the best row's minutes* takes as long per iteration as plain."""
SOFT_LABELS = "soft labels"


def proof(extent: Extent) -> dict[str, Row]:
    """Seconds per 100 iterations of every core row, loaders included, and what is paid once."""
    rows: dict[str, Row] = {}
    for label, shape in (("ACDC", extent.cardiac), ("BraTS 2024", extent.large)):
        rows[f"{label}: {SOFT_LABELS}"] = partial(measure_soft_labels, shape, extent)
        for name, (trainer, own) in CORE.items():
            rows[f"{label}: {name}"] = partial(measure_row, shape, trainer, own, extent)
    return rows


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


def measure_row(shape: Shape, name: str, assignments: tuple[str, ...], extent: Extent) -> dict[str, Any]:
    """Iterations through nnU-Net's own loaders, after what is done once."""
    with made_up_dataset(shape, extent):
        trainer = new_trainer(shape, name, extent, assignments)
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
