"""``nnunet-kd weigh``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli import training_options as options
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.environment import method_trainer, variables_set_to

if TYPE_CHECKING:
    from nnunet_kd.training.gradient_shares import Pull
    from nnunet_kd.training.trainer import DistillationTrainer


def weigh(
    dataset: options.Dataset,
    configuration: options.Configuration,
    fold: options.Fold,
    method: options.Method = "dcd",
    teachers: options.Teachers = None,
    recipe: options.Recipe = None,
    assignments: options.Assignments = None,
    plans_name: options.PlansName = "nnUNetPlans",
    device: options.Device = "cuda",
    batches: Annotated[int, typer.Option(min=1, help="Batches of training data to measure on.")] = 8,
) -> None:
    """How hard a method pulls on a new student, against the labels, and which weight makes it pull as hard. Trains nothing."""
    trainer = method_trainer(method)
    options.check_device(device)
    options.check_fold(fold)
    options.pass_settings(teachers or [], recipe, assignments or [])
    if not options.check_settings(trainer, dataset, configuration, plans_name).active_objectives():
        raise SettingsError(f"{method} has no objective with a weight above 0, so there is nothing to weigh.")

    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    from nnunet_kd.training.gradient_shares import leaving_nothing, measure_pulls

    # a few batches need no worker processes, and compiled code keeps nothing for a second backward pass
    variables = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    arguments: dict[str, Any] = {"plans_identifier": plans_name, "device": torch.device(device)}
    fold_number: Any = fold if fold == "all" else int(fold)
    console = Console()

    def make() -> DistillationTrainer:
        made: DistillationTrainer = get_trainer_from_args(dataset, configuration, fold_number, trainer, **arguments)
        return made

    with (
        variables_set_to(variables),
        console.status("measuring"),
        contextlib.redirect_stdout(io.StringIO()),
        leaving_nothing(make) as made,
    ):
        made.prepare_distillation()
        pulls = measure_pulls(made, _training_batches(made, batches))
    console.print(_table(pulls, batches))
    for line in _advice(pulls):
        console.print(line, soft_wrap=True, highlight=False)


def _training_batches(trainer: DistillationTrainer, count: int) -> Iterator[dict[str, Any]]:
    """Of nnU-Net's own loader, augmented as in training."""
    loader, _ = trainer.get_dataloaders()
    return (next(loader) for _ in range(count))


def _table(pulls: list[Pull], batches: int) -> Table:
    table = Table(
        *("objective", "weight", "pull", "least to most", "cosine", "weight for an equal pull"),
        title=f"Pull on a new student's encoder, {batches} batches",
        caption="Pull: norm of the weighted objective's gradient over that of the labels', median over batches.",
    )
    for pull in pulls:
        table.add_row(
            pull.objective,
            f"{pull.weight:g}",
            f"{pull.ratio:.3g}",
            f"{min(pull.ratios):.3g} to {max(pull.ratios):.3g}",
            f"{pull.cosine:+.2f}",
            f"{pull.equal_weight:.2g}",
        )
    return table


def _advice(pulls: list[Pull]) -> Iterator[str]:
    """What a ratio far from 1 means, and what to do."""
    from nnunet_kd.training.gradient_shares import DROWNED, DROWNS_LABELS

    for pull in pulls:
        setting = f"--set objectives.{pull.objective}.weight={pull.equal_weight:.2g}"
        if pull.ratio > DROWNS_LABELS:
            yield (
                f"{pull.objective}: the labels hardly count beside it, and steps this large may wear the student's learning rate "
                f"out. An equal pull: {setting}"
            )
        elif pull.ratio < DROWNED:
            yield f"{pull.objective}: hardly pulls on the student. An equal pull: {setting}"
