"""``nnunet-kd sweep``."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.cli.training_options import Recipe, check_device
from nnunet_kd.errors import INTERRUPTED
from nnunet_kd.system.counts import counted

if TYPE_CHECKING:
    from nnunet_kd.workflows.sweep.command import SweepEnd
    from nnunet_kd.workflows.sweep.planned_run import PlannedRun, State


def sweep(
    dataset: Annotated[
        str, typer.Argument(help="Dataset number or name, or a sweep's YAML file.", metavar="DATASET|FILE.yaml")
    ],
    configuration: Annotated[Optional[str], typer.Argument(help="2d, 3d_fullres, ...")] = None,  # noqa: UP045
    methods: Annotated[
        Optional[str],  # noqa: UP045
        option("methods", "As in train -m, or the file's variants: student,dcd,logits."),
    ] = None,
    variants: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--variant",
            metavar="'NAME: KEY=VALUE ...'",
            help="A method with settings of its own, such as 'dcd-S: objectives.dcd.bands=S'; repeatable.",
        ),
    ] = None,
    folds: Annotated[
        Optional[list[str]],  # noqa: UP045
        option("folds", "After the other arguments, as -f 0 1 2; or 0,1,2, or all. Default: 0."),
    ] = None,
    seeds: Annotated[Optional[str], option("seeds", "0,1; default 0.")] = None,  # noqa: UP045
    name: Annotated[Optional[str], option("name", "Default: the file's name or the configuration.")] = None,  # noqa: UP045
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        option("teacher", "Model folder or exported zip; every fold takes its own fold's teacher."),
    ] = None,
    pretrained_weights: Annotated[
        Optional[str],  # noqa: UP045
        option(
            "pretrained-weights",
            "Checkpoint that every student starts from, or a model folder: every fold its own fold's checkpoint_final.pth.",
        ),
    ] = None,
    recipe: Recipe = None,
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        option("set", "Any setting, for all runs; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    plans: Annotated[
        Optional[str],  # noqa: UP045
        option("plans", "The teacher's plan, or a student's; default nnUNetPlans."),
    ] = None,
    device: Annotated[
        Optional[str],  # noqa: UP045
        option("device", "cuda, cpu or mps; default cuda."),
    ] = None,
    slurm: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="KEY=VALUE",
            help="Submit an array: timeout_min=1440, partition=gpu, gpus_per_node=1, array_parallelism=8; repeatable.",
        ),
    ] = None,
    probabilities: Annotated[
        bool, option("save-probabilities", "Also keep the validation's probabilities, for `compare`.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Trainings at once on this machine; the cores are divided among them.")
    ] = 1,
    dry_run: Annotated[bool, option("dry-run", "Only print the table of runs.")] = False,
) -> None:
    """Train methods x folds x seeds; what is done is skipped, what was interrupted continues."""
    from nnunet_kd.workflows.sweep.command import run_sweep
    from nnunet_kd.workflows.sweep.description import describe_sweep, parse_arguments
    from nnunet_kd.workflows.sweep.execution import Stopped
    from nnunet_kd.workflows.sweep.side_by_side import run_side_by_side

    given = {
        "configuration": configuration,
        "name": name,
        "methods": methods,
        "variants": variants,
        "folds": folds,
        "seeds": seeds,
        "teacher": teacher,
        "pretrained_weights": pretrained_weights,
        "recipe": recipe,
        "settings": assignments,
        "plans": plans,
        "save_probabilities": probabilities,
        "device": device,
        "slurm": slurm,
    }
    description = describe_sweep(*parse_arguments(dataset, given))
    console = Console()
    trains_here = description.slurm is None and not dry_run
    if trains_here:
        check_device(description.device)
    if trains_here and jobs > 1:
        raise typer.Exit(run_side_by_side(_without_jobs(sys.argv[1:]), jobs, lambda line: _say(console, line)))
    try:
        end = run_sweep(description, lambda folder, states: _print_table(console, states, folder), console, dry_run)
    except Stopped as error:
        _say(console, f"Stopped ({error}). The same command again continues.")
        raise typer.Exit(INTERRUPTED) from error
    _print_end(console, end, next(iter(description.rows())))
    if end.failed:
        raise typer.Exit(1)


def _without_jobs(arguments: Sequence[str]) -> list[str]:
    """The command's own arguments without ``--jobs N`` or ``--jobs=N``."""
    places = [place for place, argument in enumerate(arguments) if argument == "--jobs"]
    left_out = {*places, *(place + 1 for place in places)}
    return [
        argument
        for place, argument in enumerate(arguments)
        if place not in left_out and not argument.startswith("--jobs=")
    ]


def _print_end(console: Console, end: SweepEnd, reference: str) -> None:
    if end.jobs is not None:
        if end.jobs:
            place = end.folder / "submitit"
            _say(console, f"Submitted {len(end.jobs)} jobs ({end.jobs[0]} to {end.jobs[-1]}); output: {place}")
            _say(console, "The same command with --dry-run shows how far they are.")
        return
    for failure in end.failures:
        console.print(f"\n[bold red]{escape(str(failure.run))} {failure.reason}[/]", soft_wrap=True, highlight=False)
        for line in failure.lines:
            _say(console, f"  {line}")
        _say(console, f"The whole output: {failure.run.folder / 'sweep_run.log'}")
    if end.failures:
        _say(
            console,
            f"\n{len(end.failures)} of {counted(end.missing, 'run')} failed. The same command again tries them once more.",
        )
        return
    left = Counter(end.states)
    if left["running"]:
        _say(console, f"Still trained by other processes: {left['running']}; --dry-run shows how far they are.")
    if left["failed"]:
        _say(console, f"Failed in other processes: {left['failed']}. The same command again tries them once more.")
    elif end.states:
        command = ["nnunet-kd", "compare", "--sweep", str(end.folder), "--reference", reference]
        _say(console, f"Compare them: {shlex.join(command)}")


def _print_table(console: Console, states: Mapping[PlannedRun, State], folder: Path) -> None:
    from nnunet_kd.workflows.sweep.record import read_record

    table = Table("variant", "fold", "seed", "state", "epochs", "training")
    colours = {"done": "green", "running": "yellow", "failed": "red", "todo": ""}
    for run, state in states.items():
        record = read_record(run.folder)
        table.add_row(
            run.variant,
            str(run.fold),
            str(run.seed),
            f"[{colours[state]}]{state}[/]" if colours[state] else state,
            f"{run.epochs_finished()}/{run.epochs}",
            "" if record is None else duration(record.training_seconds),
        )
    console.print(table)
    dataset = next(iter(states)).folder.parent.parent.name  # a sweep has one, and at least one run
    # below the table: a column of paths is wider than most terminals
    _say(console, f"Folders: {folder / 'VARIANT/seed_SEED' / dataset / '*' / 'fold_FOLD'}")
    counts = Counter(states.values())
    _say(
        console,
        ", ".join(f"{counts[state]} {state}" for state in ("done", "running", "failed", "todo") if counts[state]),
    )


def duration(seconds: float) -> str:
    """``1:02:03``, hours first."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _say(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True, highlight=False)
