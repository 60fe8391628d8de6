"""``nnunet-kd bench size``: a training step at a real size, each trainer alone in its process, beside what no step can avoid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_kd.distillation.features import find_encoder
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.models.plans import build_meta_network, inputs_and_heads, parameter_count, reduce_plans
from nnunet_kd.system.memory import forget_peak, peak_resident_bytes, resident_bytes
from nnunet_kd.workflows.bench.pair import Shape, random_batch
from nnunet_kd.workflows.bench.rows import (
    PLAIN_STUDENT,
    TrainerPhase,
    forward_needed,
    phases,
    prepared_trainers,
    training_step,
)

REDUCTION = 4
FLOAT32 = 4


def measure_sizes(trainers: Sequence[str], shape: Shape, device: torch.device) -> Iterator[dict[str, Any]]:
    """One step of the plain student and of each trainer, one process after another.

    Args:
        trainers: shipped trainers with objectives.
        shape: the plan to train with.
        device: to train on.

    Yields:
        Per row what :func:`measure_apart` returns.
    """
    for row in [PLAIN_STUDENT, *phases(trainers)]:
        yield measure_apart(row, shape, device)


def measure_apart(row: TrainerPhase, shape: Shape, device: torch.device) -> dict[str, Any]:
    """One row in a process of its own.

    Returns:
        ``name``; ``forward``, the pass it needs of the teacher; ``seconds`` of the step, on CUDA of the second one, after
        compilation; ``peak bytes`` (CPU: resident memory beyond that of the imported libraries, which includes the networks;
        CUDA: the allocator's); ``error`` instead of the last two if the process failed, for want of memory for example.
    """
    arguments = [
        sys.executable,
        "-m",
        "nnunet_kd.workflows.bench.size",
        json.dumps(asdict(row)),
        shape.name,
        str(device),
    ]
    result = subprocess.run(arguments, check=False, capture_output=True, text=True)
    if result.returncode == 0:
        return {"name": row.name, **json.loads(result.stdout.strip().splitlines()[-1])}
    killed = f"ended by signal {-result.returncode}" if result.returncode < 0 else ""
    error = killed or (result.stderr.strip().splitlines() or ["failed"])[-1]
    return {"name": row.name, "forward": "", "error": error}


def measure_here(row: TrainerPhase, shape: Shape, device: torch.device) -> dict[str, Any]:
    """The figures of one row, in this process, whose memory they then include."""
    before = resident_bytes()
    with prepared_trainers([row], shape, device) as prepared:
        trainer = prepared[row.name]
        run = training_step(trainer, random_batch(trainer), row.exploring)
        cuda = device.type == "cuda"
        forget_peak()
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        timing = time_in_turn({row.name: run}, repeats=1, device=device, warm_up=int(cuda))[row.name]
        peak = torch.cuda.max_memory_allocated(device) if cuda else peak_resident_bytes() - before
        return {"forward": forward_needed(trainer, row.exploring), "seconds": timing.median, "peak bytes": peak}


def unavoidable(shape: Shape) -> dict[str, dict[str, int]]:
    """What a step must compute and hold at least, in float32, counted on the meta device without running anything.

    Returns:
        ``flops``: ``student``, forward and backward; ``teacher encoder`` and ``teacher forward``, of one batch; convolutions and
        matrix products, two operations per multiply-add. ``bytes``: ``student``, its weights, gradients and momentum, the batch,
        and what autograd keeps for the backward pass; ``teacher encoder`` and ``teacher forward``, the teacher's weights and
        the outputs that objectives compare (stage features; features and logits).
    """
    plans, dataset_json = shape.plans, shape.dataset_json
    configuration = shape.configuration
    channels, heads = inputs_and_heads(plans, shape.configuration_name, dataset_json)
    batch = (configuration["batch_size"], channels, *configuration["patch_size"])
    student = build_meta_network(reduce_plans(plans, REDUCTION), shape.configuration_name, channels, heads)
    teacher = build_meta_network(plans, shape.configuration_name, channels, heads)
    image = torch.empty(batch, device="meta")

    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no storage's number is given to another
    own = {parameter.untyped_storage()._cdata for parameter in student.parameters()} | {image.untyped_storage()._cdata}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = student(image)
        output.sum().backward()
    flops, sizes = {"student": counter.get_total_flops()}, {}
    sizes["student"] = (
        3 * FLOAT32 * parameter_count(student) + image.nbytes + sum(storage.nbytes() for storage in kept.values())
    )
    encoder = find_encoder(teacher)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = encoder(image)
    flops["teacher encoder"] = counter.get_total_flops()
    sizes["teacher encoder"] = FLOAT32 * parameter_count(encoder) + sum(feature.nbytes for feature in features)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = teacher(image)
    flops["teacher forward"] = counter.get_total_flops()
    sizes["teacher forward"] = (
        FLOAT32 * parameter_count(teacher) + sum(feature.nbytes for feature in features) + logits.nbytes
    )
    return {"flops": flops, "bytes": sizes}


if __name__ == "__main__":
    row, shape, device = sys.argv[1:]
    print(json.dumps(measure_here(TrainerPhase(**json.loads(row)), Shape(shape), torch.device(device))))
