"""``nnunet-kd inherit``."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nnunet_kd.cli import training_options as options
from nnunet_kd.cli.options import option
from nnunet_kd.errors import NnunetKdWarning
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.nnunet.folds import parse_fold

if TYPE_CHECKING:
    from nnunet_kd.distillation.starts.layer_fit import LayerFit
    from nnunet_kd.workflows.inherit import Inherited

TRAINER = "nnUNetTrainerInherited"
WARNING = re.compile(r"WARNING: (.*)")
"""In the log, which is not shown."""


def inherit(
    dataset: options.Dataset,
    configuration: options.Configuration,
    fold: options.Fold,
    teachers: options.Teachers = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045  typer on Python 3.10
        option("output", "Write the untrained student: a model folder, or with the ending .zip an archive."),
    ] = None,
    recipe: options.Recipe = None,
    assignments: options.Assignments = None,
    plans_name: options.PlansName = "nnUNetPlans",
    device: options.Device = "cuda",
    overwrite: Annotated[bool, option("overwrite", "Replace what lies at the output.")] = False,
    no_validation: Annotated[
        bool, typer.Option("--no-validation", help="Do not predict the fold's validation cases.")
    ] = False,
) -> None:
    """Compute a student's weights from its teacher's, and show how good they are before any training. Trains nothing."""
    options.check_device(device)
    own_fold = parse_fold(fold)
    options.pass_settings(teachers or [], recipe, assignments or [])
    options.check_settings(TRAINER, dataset, configuration, plans_name, str(own_fold))

    import torch

    from nnunet_kd.nnunet.training import trainer_of_dataset
    from nnunet_kd.workflows.inherit import inherit_student

    make = partial(trainer_of_dataset, dataset, configuration, own_fold, TRAINER, plans_name, torch.device(device))
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("looking for the teacher", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        def tell(what: str) -> None:
            nonlocal task
            bar.remove_task(task)  # a bar without an end is a new one
            task = bar.add_task(what, total=None)

        found: list[Inherited] = []
        log = io.StringIO()
        try:
            # a few patches need no worker processes, and what is not trained needs no compiling
            with (
                variables_set_to({"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}),
                contextlib.redirect_stdout(log),
            ):
                inherit_student(make, output, overwrite, not no_validation, show, tell, found.append)
        finally:  # also where the output could not be written
            bar.stop()
            for told in WARNING.findall(log.getvalue()):
                warnings.warn(told, NnunetKdWarning, stacklevel=2)
            for one in found:
                _print(console, one)
    if output is not None:
        console.print(f"The untrained student is in {output}.", soft_wrap=True, highlight=False)


def _print(console: Console, found: Inherited) -> None:
    table = Table(
        "layer", "channels", "unknowns", "samples", "unexplained", title="What is left of the teacher's signal"
    )
    for fit in found.fits:
        table.add_row(
            fit.name,
            f"{len(fit.kept)} of {fit.teacher_channels}",
            f"{fit.unknowns}" if fit.unknowns else "",
            f"{fit.samples}",
            _unexplained(fit),
        )
    console.print(table)
    console.print(f"Teacher: {found.teacher}", soft_wrap=True, highlight=False)
    if found.dice:
        console.print(_dice_table(found))
        if not found.teacher_dice:
            console.print("The teacher has no validation/summary.json of these cases to compare with.", highlight=False)


def _unexplained(fit: LayerFit) -> str:
    if not fit.trained:
        return "not trained"
    return f"{fit.unexplained:.1%}" if isfinite(fit.unexplained) else "no signal"


def _dice_table(found: Inherited) -> Table:
    table = Table("", *found.dice, "mean", title="Validation Dice before training, in percent")
    for name, values in (("student", found.dice), ("teacher", found.teacher_dice)):
        if values:
            table.add_row(
                name, *(f"{100 * value:.2f}" for value in values.values()), f"{100 * mean(values.values()):.2f}"
            )
    return table
