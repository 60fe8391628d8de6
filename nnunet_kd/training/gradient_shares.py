"""How large each objective's gradient to a student is, against the labels' own.

Weights from papers mean little on other data: a loss of logits that is summed over voxels may have dozens of
times the labels' gradient, and nothing in the loss curves shows it. What comes of that is in docs/explanation-short-trainings.md.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nnunet_kd.distillation.features import find_encoder, plain_module
from nnunet_kd.distillation.objectives.base import StepOutputs
from nnunet_kd.distillation.weighting import sum_of
from nnunet_kd.errors import DataError
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.training.unlabelled import loss_of_labelled

HARDLY_COUNTS, HIDES_LABELS = 0.05, 10.0
"""Ratios below the one: the objective hardly counts; above the other: the labels hardly do."""
ITERATION = 0
"""Of the run, which a new student has not begun."""


@dataclass(frozen=True)
class GradientShare:
    """One objective's gradient against the labels', on several batches.

    Attributes:
        objective: its name.
        weight: at the height of its schedule.
        ratios: per batch, norm of its weighted gradient to the student's encoder over the norm of the labels'.
        cosines: per batch, between the two gradients; -1: the objective asks for the opposite.
    """

    objective: str
    weight: float
    ratios: tuple[float, ...]
    cosines: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over batches."""
        return statistics.median(self.ratios)

    @property
    def cosine(self) -> float:
        """Median over batches."""
        return statistics.median(self.cosines)

    @property
    def equal_weight(self) -> float:
        """The weight with which its gradient would be as large as the labels'; infinite if it has none."""
        return self.weight / self.ratio if self.ratio else float("inf")

    @property
    def has_equal_weight(self) -> bool:
        """Whether there is such a weight that can be set."""
        return 0 < self.equal_weight < float("inf")


@contextlib.contextmanager
def in_temporary_results(make: Callable[[], DistillationTrainer]) -> Iterator[DistillationTrainer]:
    """A trainer whose output folder, which nnU-Net makes and logs to at once, is a temporary one.

    Args:
        make: builds it.
    """
    with tempfile.TemporaryDirectory() as results:
        with variables_set_to({"nnUNet_results": results, "nnUNet_wandb_enabled": None}):
            trainer = make()
        yield trainer


def encoder_gradients(
    trainer: DistillationTrainer, batch: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Gradients to all of the student's encoder for one batch, float32.

    Args:
        trainer: after ``prepare_distillation``; its networks are not compiled, and its objectives have losses.
        batch: of nnU-Net's loader.

    Returns:
        The segmentation loss's ``(N,)``; and by objective the weighted loss's ``(N,)``, whatever its schedule, without
        those that have no loss or no weight.
    """
    assert trainer.supervision is not None
    distillation = trainer.supervision.distillation
    network = plain_module(trainer.network).train()
    parameters = [parameter for parameter in find_encoder(network).parameters() if parameter.requires_grad]
    with step_outputs(trainer, batch) as (step, output, target):
        samples = trainer.labelled_samples(batch)
        labels = flat_gradient(loss_of_labelled(trainer.loss.segmentation, output, target, samples), parameters)
        found = {}
        for name, settings in trainer.settings.active_objectives().items():
            if settings.full_weight() > 0 and (terms := distillation.terms(name, step)):
                found[name] = flat_gradient(settings.full_weight() * sum_of(terms), parameters)
    return labels, found


@contextlib.contextmanager
def step_outputs(trainer: DistillationTrainer, batch: dict[str, Any]) -> Iterator[tuple[StepOutputs, Any, Any]]:
    """What every objective sees of a batch, with the student's output and the target."""
    assert trainer.supervision is not None
    image, target = (_on(trainer.device, batch[key]) for key in ("data", "target"))
    objectives = trainer.supervision.distillation.all_objectives()
    maps = batch.get(KEY)
    maps = None if maps is None else _on(trainer.device, maps)
    trainer.supervision.start_step(trainer.current_epoch, ITERATION, objectives, maps)
    try:
        output = plain_module(trainer.network)(image)
        yield trainer.supervision.outputs(output, target), output, target
    finally:
        trainer.supervision.finish_step()


def prepare_objectives(trainer: DistillationTrainer, batches: Sequence[dict[str, Any]]) -> None:
    """Let objectives that have no loss at first, as FreeKD while it tunes its prompts, get so far, on the batches in turn."""
    assert trainer.supervision is not None
    distillation = trainer.supervision.distillation
    if not any(objective.is_preparing() for objective in distillation.all_objectives().values()):
        return
    for batch in itertools.cycle(batches):
        with torch.no_grad(), step_outputs(trainer, batch) as (step, _, _):
            if not distillation.prepare(step):
                return


def flat_gradient(loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """A scalar's gradient to all parameters as one vector ``(N,)``, zero where there is none; keeps the graph."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([part.flatten() for part in parts])


def _on(device: torch.device, value: Any) -> Any:
    """Tensors, or lists of them, on the device."""
    return [part.to(device) for part in value] if isinstance(value, (list, tuple)) else value.to(device)


def ratio_and_cosine(objective: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Of an objective's and the labels' gradients ``(N,)``."""
    cosine = torch.nn.functional.cosine_similarity(objective, labels, dim=0)
    return float(objective.norm() / labels.norm()), float(cosine)


def measure_shares(trainer: DistillationTrainer, batches: Iterable[dict[str, Any]]) -> list[GradientShare]:
    """Every objective of a prepared trainer against the labels; see :func:`encoder_gradients` and :func:`prepare_objectives`.

    Batches whose labels have no gradient, because none of their samples has labels, are left out.

    Raises:
        DataError: so are all.
    """
    batches = list(batches)
    prepare_objectives(trainer, batches)
    found: dict[str, list[tuple[float, float]]] = {}
    for batch in batches:
        labels, gradients = encoder_gradients(trainer, batch)
        if labels.norm() == 0:
            continue
        for name, gradient in gradients.items():
            found.setdefault(name, []).append(ratio_and_cosine(gradient, labels))
    if not found:
        raise DataError(
            f"there is nothing to compare: of the training batches that were measured ({len(batches)}), none has samples with "
            f"labels and an objective with a loss. Measure more with --batches."
        )
    weights = {name: settings.full_weight() for name, settings in trainer.settings.active_objectives().items()}
    return [
        GradientShare(name, weights[name], *(tuple(column) for column in zip(*values, strict=True)))
        for name, values in found.items()
    ]


def shares_on_dataset(
    dataset: str, configuration: str, fold: int | str, trainer: str, plans_name: str, device: torch.device, batches: int
) -> list[GradientShare]:
    """Every objective of a new student against the labels, on training batches; nothing is trained or left behind.

    Args:
        dataset, configuration, fold, trainer, plans_name, device: see :func:`~nnunet_kd.nnunet.training.trainer_of_dataset`;
            settings come from where the trainer looks for them.
        batches: of nnU-Net's own loader, augmented as in training.
    """
    # a few batches need no worker processes, and compiled code keeps nothing for a second backward pass
    variables = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}

    make = partial(trainer_of_dataset, dataset, configuration, fold, trainer, plans_name, device)
    with variables_set_to(variables), in_temporary_results(make) as made:
        made.prepare_distillation()
        loader, _ = made.get_dataloaders()
        return measure_shares(made, (next(loader) for _ in range(batches)))
