"""``nnunet-kd demo``: the whole way from data to a distilled student, in minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.cli.training_options import check_device
from nnunet_kd.system.counts import counted


def demo(
    output: Annotated[Path, option("output", "Folder for everything it writes.")] = Path("demo-output"),
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--data", help="A dataset in MSD layout (TaskXX_Name) instead of synthetic heads."),
    ] = None,
    iterations: Annotated[int, option("iterations", "Of each student's training.")] = 300,
    device: Annotated[str, option("device", "cuda, cpu or mps.")] = "cpu",
) -> None:
    """Make data, train a teacher with stock nnU-Net, distil a student with and without DCD, predict, compare."""
    from nnunet_kd.workflows.demo.demonstration import Demonstration

    check_device(device)
    console = Console(highlight=False)
    start = time.perf_counter()
    run = Demonstration(output, data, iterations, device)
    console.print(
        f"Demonstration on {run.dataset}, {counted(iterations, 'iteration')} per student; logs in {run.output}/logs"
    )
    results = run.run()

    classes = list(results[0].dice)
    table = Table("model", "parameters", *[f"Dice {name}" for name in classes], "mean Dice", "seconds per case")
    for result in results:
        scores = list(result.dice.values())
        table.add_row(
            result.name,
            f"{result.parameters:,}",
            *[f"{score:.3f}" for score in scores],
            f"{sum(scores) / len(scores):.3f}",
            f"{result.seconds_per_case:.2f}",
        )
    console.print(table)
    console.print(f"Picture: {run.output}/demo.png ({time.perf_counter() - start:.0f} s in all)")
    console.print(
        "A few hundred iterations show the commands, not how good a method is: docs/results.md has longer runs."
    )
