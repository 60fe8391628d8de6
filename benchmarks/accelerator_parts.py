"""What ``accelerator.sh`` measures: parts, the shorter ones first, each of rows with figures that JSON can hold."""

from __future__ import annotations

import gc
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerator_extent import (
    Extent,
    device_peak,
    forget_device_peak,
    labelled_batch,
    made_up_dataset,
    new_trainer,
    part_of_batch,
    wait,
)
from accelerator_objectives import measure_objective
from accelerator_proof import DCD, INHERITED, KD, SOFT, Row, proof
from accelerator_summary import ALL_STAGES, DCD_AND_SOFT, DENSE
from torch._dynamo import OptimizedModule
from torch.distributed import get_rank, get_world_size

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.nnunet.environment import trainer_names, variables_set_to
from nnunet_kd.training.distributed import gather, process_group
from nnunet_kd.training.started import fingerprint
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.loss import measure_memory, measure_speed, memory_here, stage_shapes
from nnunet_kd.workflows.bench.rows import PLAIN_STUDENT, TrainerPhase, all_trainers, phases
from nnunet_kd.workflows.bench.size import measure_apart, measure_here
from nnunet_kd.workflows.bench.step import measure_steps

MIXTURE = ("objectives.dcd.weight=0.05", "objectives.logits.weight=1")
MEMORY = "memory of the finest stage"


def objectives(extent: Extent) -> dict[str, Row]:
    """Forward and backward of every objective, and what explores."""
    return {row.name: partial(measure_objective, row, extent) for row in phases(all_trainers())}


def loss(extent: Extent) -> dict[str, Row]:
    """DCD's loss of all stages, beside ptwt's dense convolution of 512 taps, and its memory."""
    stages, one = stage_shapes(extent.large), stage_shapes(extent.large, batch_size=1)
    speed = partial(measure_speed, repeats=extent.repeats, threads=torch.get_num_threads(), device=extent.device)
    memory: Row = (
        partial(measure_memory, stages[0], extent.device)
        if extent.apart
        else partial(memory_here, stages[0], str(extent.device))
    )
    return {
        ALL_STAGES: partial(speed, stages, with_ptwt=False),
        DENSE: partial(speed, one),
        MEMORY: memory,
    }


def start(extent: Extent) -> dict[str, Row]:
    """The start inside the teacher, at the BraTS shape."""
    return {"the start inside the teacher": partial(measure_start, extent)}


def measure_start(extent: Extent) -> dict[str, Any]:
    """Loading the teacher and computing the student's weights, after both networks' plans are known."""
    with made_up_dataset(extent.large, extent):
        trainer = new_trainer(extent.large, INHERITED, extent)
        trainer.initialize()
        forget_device_peak(extent.device)
        began = time.perf_counter()
        trainer.prepare_distillation()
        wait(extent.device)
        seconds = time.perf_counter() - began
        worst = max((fit for fit in trainer.start_fits if fit.trained), key=lambda fit: fit.unexplained)
        return {
            "seconds": seconds,
            "peak bytes": device_peak(extent.device),
            "layers": len(trainer.start_fits),
            "least explained": worst.name,
            "unexplained": worst.unexplained,
            "finite": all(
                bool(value.isfinite().all()) for value in plain_module(trainer.network).state_dict().values()
            ),
        }


def trainers(extent: Extent) -> dict[str, Row]:
    """Every shipped trainer, and one row more where it explores."""
    rows: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in trainer_names():
        if name in all_trainers():
            for phase in phases([name]):
                own = ("objectives.fopro.explore_every=1",) if phase.exploring and "FoPro" in name else ()
                rows[phase.name] = (name, (*phase.assignments(), *own))
        else:
            rows[name] = (name, MIXTURE if name == KD else ())
    return {row: partial(measure_training, name, own, extent) for row, (name, own) in rows.items()}


def measure_training(name: str, assignments: tuple[str, ...], extent: Extent) -> dict[str, Any]:
    """Steps on one batch of the hippocampus shape, as nnU-Net takes them."""
    with made_up_dataset(extent.small, extent):
        trainer = new_trainer(extent.small, name, extent, assignments)
        trainer.maps_in_batches = True
        trainer.prepare_distillation()
        trainer.on_train_epoch_start()
        return _steps(trainer, labelled_batch(trainer), extent)


def _steps(trainer: DistillationTrainer, batch: dict[str, Any], extent: Extent) -> dict[str, Any]:
    losses, seconds, skipped = [], [], 0
    forget_device_peak(trainer.device)
    for _ in range(extent.steps):
        began = time.perf_counter()
        result = trainer.train_step(batch)  # waits for the device
        seconds.append(time.perf_counter() - began)
        losses.append(float(result["loss"]))
        skipped += bool(result["skipped"])
    few = max(1, extent.steps // 4)
    first, last = statistics.fmean(losses[:few]), statistics.fmean(losses[-few:])
    weights = plain_module(trainer.network).state_dict().values()
    network = trainer.network.module if trainer.is_ddp else trainer.network
    mixed, compiled = trainer.grad_scaler is not None, isinstance(network, OptimizedModule)
    if extent.on_gpu and not (mixed and compiled):
        raise RuntimeError(f"mixed precision: {mixed}, compiled: {compiled}; on a GPU nnU-Net trains with both")
    return {
        "first": first,
        "last": last,
        "finite": all(bool(torch.tensor(one).isfinite()) for one in losses)
        and all(bool(value.isfinite().all()) for value in weights),
        "falling": last < first,
        "skipped": skipped,
        "mixed precision": mixed,
        "compiled": compiled,
        "first step seconds": seconds[0],
        "seconds": statistics.median(seconds[few:]),
        "peak bytes": device_peak(trainer.device),
        "losses": losses,
    }


def processes(extent: Extent) -> dict[str, Row]:
    """Several processes, a card each, that train one student."""
    return {f"{extent.processes} processes": partial(measure_processes, extent)}


def measure_processes(extent: Extent) -> dict[str, Any]:
    """Steps of DCD by torchrun; left out where there are too few cards."""
    if extent.on_gpu and torch.cuda.device_count() < extent.processes:
        return {"left out": f"this machine has {torch.cuda.device_count()} GPU(s), and {extent.processes} are needed"}
    if not extent.apart:
        return alone_in_its_group(extent)
    script, output = Path(__file__).with_name("accelerator.py"), extent.work / "processes.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(extent.processes)]
    command += [str(script), "process", "--results", str(extent.work.parent), "--work", str(extent.work)]
    with made_up_dataset(extent.small, extent):  # before the processes look for it
        subprocess.run([*command, "--device", extent.device.type], check=True)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def alone_in_its_group(extent: Extent) -> dict[str, Any]:
    """The same with one process, this one: every message is exchanged with itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    described = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    with variables_set_to(described):
        return one_of_several(extent)


def one_of_several(extent: Extent) -> dict[str, Any]:
    """Steps of DCD in one of several processes, which torchrun or its variables describe; all return what the first one saw."""
    with made_up_dataset(extent.small, extent), process_group(extent.device.type) as device:
        trainer = new_trainer(extent.small, DCD, extent, device=device)
        trainer.prepare_distillation()
        trainer.on_train_epoch_start()
        batch = part_of_batch(labelled_batch(trainer), get_rank(), get_world_size())
        everyone = gather(_steps(trainer, batch, extent))
        same = len(set(gather(fingerprint(trainer.network)))) == 1
        if trainer.supervision is not None:
            same &= len(set(gather(fingerprint(trainer.supervision.distillation)))) == 1
        return {**everyone[0], "processes": get_world_size(), "same weights everywhere": same}


def steps(extent: Extent) -> dict[str, Row]:
    """Parts of a training step, side by side."""
    own = partial(measure_steps, repeats=extent.repeats, device=extent.device, memory=False)
    return {
        "all trainers, hippocampus": partial(own, all_trainers(), shape=extent.small),
        DCD_AND_SOFT: partial(own, [DCD, SOFT], shape=extent.large),
    }


def sizes(extent: Extent) -> dict[str, Row]:
    """Memory and time of a step at the BraTS shape, the plain student first."""
    return {row.name: partial(measure_size, row, extent) for row in [PLAIN_STUDENT, *phases(all_trainers())]}


def measure_size(row: TrainerPhase, extent: Extent) -> dict[str, Any]:
    """One row of ``nnunet-kd bench size``."""
    if not extent.apart:
        return measure_here(row, extent.large, extent.device)
    found = measure_apart(row, extent.large, extent.device)
    if "error" in found:
        raise RuntimeError(found["error"])
    return found


PARTS: dict[str, Callable[[Extent], dict[str, Row]]] = {
    "objectives": objectives,
    "loss": loss,
    "start": start,
    "trainers": trainers,
    "processes": processes,
    "steps": steps,
    "sizes": sizes,
    "proof": proof,
}


def free_memory(device: torch.device) -> None:
    """Between rows: a GPU's memory, and what was compiled, are given back."""
    if device.type == "cuda":
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
