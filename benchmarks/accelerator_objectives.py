"""Every objective alone on a device: forward and backward in mixed precision, exploration, and what makes the device wait.

What tests check with PyTorch's fake tensors covers forward only (``tests/distillation/objectives/test_devices.py``).
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerator_extent import Extent

from nnunet_kd.distillation.objectives.base import StepOutputs
from nnunet_kd.distillation.supervision import TeacherSupervision
from nnunet_kd.distillation.targets import Targets
from nnunet_kd.distillation.weighting import Distillation
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.workflows.bench.pair import random_batch
from nnunet_kd.workflows.bench.rows import TrainerPhase, period, prepared_trainers

DRAWING = ("fgbvd", "fopro")
"""They draw random numbers on the device, where the CPU's generator gives others: no two devices compute the same."""
LOSS_SCALE = 2.0**10
"""Stands for nnU-Net's gradient scaler: without it gradients of half-precision features vanish."""


def measure_objective(row: TrainerPhase, extent: Extent) -> dict[str, Any]:
    """One objective on the features of an untrained pair, at the hippocampus shape.

    Returns:
        ``loss`` and ``gradient``, its norm; ``explored``, what exploration logs; ``finite``, all of these; ``difference to the
        CPU``, largest of the loss and its gradients, relative and in float32 (``None``: it draws, or has no loss in this phase);
        ``waits``, where Python waited for the device; ``seconds`` of all together; ``peak bytes``.
    """
    device = extent.device
    with variables_set_to({"nnUNet_compile": "f"}), prepared_trainers([row], extent.small, device) as prepared:
        trainer = prepared[row.name]
        supervision, batch = trainer.supervision, random_batch(trainer)
        assert supervision is not None
        image = batch["data"].to(device)
        target = [scale.to(device) for scale in batch["target"]]
        maps = batch[KEY].to(device) if KEY in batch else None
        supervision.start_step(0, 0 if row.exploring else period(trainer), soft_labels=maps)
        precision = torch.autocast(device.type) if extent.on_gpu else contextlib.nullcontext()
        if extent.on_gpu:
            torch.cuda.reset_peak_memory_stats(device)

        def outputs() -> StepOutputs:
            with precision:
                return supervision.outputs(trainer.network(image), target)

        once(supervision, outputs())  # constants such as the matrices of wavelets are made, and kept, in the first step
        step = outputs()
        with waits(device) as found:
            measured = once(supervision, step)
        numbers = [float(value) for value in measured.values()]
        timing = time_in_turn({"": lambda: once(supervision, outputs())}, extent.repeats, device)[""]
        return {
            "loss": float(measured.pop("loss")),
            "gradient": float(measured.pop("gradient")),
            "explored": {name: float(value) for name, value in measured.items()},
            "finite": all(math.isfinite(number) for number in numbers),
            "difference to the CPU": difference_to_cpu(supervision.distillation, step),
            "waits": found,
            "seconds": timing.median,
            "peak bytes": torch.cuda.max_memory_allocated(device) if extent.on_gpu else None,
        }


def once(supervision: TeacherSupervision, step: StepOutputs) -> dict[str, torch.Tensor]:
    """Weighted loss, norm of its gradient to features, logits and what is learned, and what exploration logs."""
    distillation = supervision.distillation
    loss, _ = distillation(step)
    found = gradients(distillation, step, LOSS_SCALE * loss)
    norms = [value.float().norm() / LOSS_SCALE for value in found]
    norm = torch.stack(norms).norm() if norms else torch.zeros_like(loss)
    return {"loss": loss.detach(), "gradient": norm, **distillation.explore(step)}


def gradients(distillation: Distillation, step: StepOutputs, loss: torch.Tensor) -> list[torch.Tensor]:
    """Of a loss to all that an objective may reach, without those that it does not; empty if it has no graph."""
    if not loss.requires_grad:
        return []
    learned = [parameter for parameter in distillation.parameters() if parameter.requires_grad]
    reachable = [*step.student_features, step.student_logits, *step.all_logits, *learned]
    found = torch.autograd.grad(loss, reachable, retain_graph=True, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def difference_to_cpu(distillation: Distillation, step: StepOutputs) -> float | None:
    """The same loss and gradients in float32, here and on the CPU: largest difference over largest value, of all tensors.

    ``None`` where the two cannot be compared: see :data:`DRAWING`, and objectives without a loss in this phase.
    """
    if set(distillation.all_objectives()) & set(DRAWING):
        return None
    sides = []
    for device in (step.image.device, torch.device("cpu")):
        own = copy.deepcopy(distillation).to(device)
        moved = in_float32(step, device)
        loss, _ = own(moved)
        if not loss.requires_grad:
            return None
        sides.append([value.detach().cpu() for value in (loss, *gradients(own, moved, loss))])
    return max(
        float((here - there).abs().max() / there.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
        for here, there in zip(*sides, strict=True)
    )


def in_float32(step: StepOutputs, device: torch.device) -> StepOutputs:
    """A copy of the step on a device, whose student outputs are leaves."""

    def leaf(value: torch.Tensor) -> torch.Tensor:
        return value.detach().to(device, torch.float32).clone().requires_grad_()

    def constant(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.detach().to(device, torch.float32)

    valid = step.targets.valid
    return replace(
        step,
        image=step.image.to(device),
        student_features=[leaf(feature) for feature in step.student_features],
        student_logits=leaf(step.student_logits),
        all_logits=tuple(leaf(one) for one in step.all_logits),
        teacher_features=[feature.detach().to(device, torch.float32) for feature in step.teacher_features],
        teacher_logits=constant(step.teacher_logits),
        soft_labels=constant(step.soft_labels),
        targets=Targets(
            step.targets.classes.to(device), None if valid is None else valid.to(device), step.targets.count
        ),
    )


@contextlib.contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Within, notes the lines at which Python waits for a GPU, as CUDA's own check reports them."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
