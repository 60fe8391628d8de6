"""``nnunet-kd weigh``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli import training_options as options
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.environment import method_trainer
from nnunet_kd.nnunet.folds import parse_fold

if TYPE_CHECKING:
    from nnunet_kd.training.gradient_shares import GradientShare


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
    """How large a method's gradient to a new student is beside the labels', and which weight makes it equal. Trains nothing."""
    trainer = method_trainer(method)
    options.check_device(device)
    own_fold = parse_fold(fold)
    options.pass_settings(teachers or [], recipe, assignments or [])
    settings, _ = options.check_settings(trainer, dataset, configuration, plans_name, str(own_fold))
    if not any(objective.full_weight() > 0 for objective in settings.active_objectives().values()):
        raise SettingsError(f"{method} has no objective with a weight above 0, so there is nothing to weigh.")

    import torch

    from nnunet_kd.training.gradient_shares import shares_on_dataset

    console = Console()
    with console.status("measuring"), contextlib.redirect_stdout(io.StringIO()):
        shares = shares_on_dataset(
            dataset,
            configuration,
            own_fold,
            trainer,
            plans_name,
            torch.device(device),
            batches,
        )
    console.print(_table(shares, batches))
    for line in _what_to_do(shares):
        console.print(line, soft_wrap=True, highlight=False)


def _table(shares: list[GradientShare], batches: int) -> Table:
    used = max(len(share.ratios) for share in shares)
    without = f" {batches - used} batches without labels are left out." if used < batches else ""
    table = Table(
        *("objective", "weight", "gradient", "least to most", "cosine", "weight for an equal gradient"),
        title=f"Gradient to a new student's encoder, {used} batches",
        caption=f"Gradient: norm of the weighted objective's gradient over that of the labels', median over batches.{without}",
    )
    for share in shares:
        table.add_row(
            share.objective,
            f"{share.weight:g}",
            f"{share.ratio:.3g}",
            f"{min(share.ratios):.3g} to {max(share.ratios):.3g}",
            f"{share.cosine:+.2f}",
            f"{share.equal_weight:.2g}" if share.has_equal_weight else "none",
        )
    return table


def _what_to_do(shares: list[GradientShare]) -> Iterator[str]:
    """What a ratio far from 1 means, and what to do."""
    from nnunet_kd.training.gradient_shares import HARDLY_COUNTS, HIDES_LABELS

    for share in shares:
        if share.objective == "soft":  # it takes its share from the labels, so that no weight makes the two equal
            continue
        if not share.has_equal_weight:
            yield f"{share.objective}: has no gradient to the encoder on these batches, so no weight makes it count."
            continue
        setting = f"--set objectives.{share.objective}.weight={share.equal_weight:.2g}"
        if share.ratio > HIDES_LABELS:
            yield (
                f"{share.objective}: the labels hardly count beside it, and steps this large make the weights grow, and "
                f"so later steps count less. An equal gradient: {setting}"
            )
        elif share.ratio < HARDLY_COUNTS:
            yield f"{share.objective}: hardly counts beside the labels. An equal gradient: {setting}"
