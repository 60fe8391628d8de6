"""``nnunet-kd plan``: write a student's plan beside its teacher's."""

from __future__ import annotations

import shlex
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli.options import option


def plan(
    dataset: Annotated[str, typer.Argument(help="Dataset number or name.")],
    plans_name: Annotated[str, option("plans", "The teacher's plan.")] = "nnUNetPlans",
    reduction: Annotated[float, option("reduction", "Divide every stage's channels by this.")] = 4.0,
    name: Annotated[
        Optional[str],  # noqa: UP045  typer on Python 3.10
        option("name", "Of the student's plan. Default: PLANS_r4, with the reduction."),
    ] = None,
    overwrite: Annotated[bool, option("overwrite", "Replace a plan of that name with other content.")] = False,
) -> None:
    """Write the plan of a student with 1/r of the teacher's channels. It uses the data as already preprocessed."""
    from nnunet_kd.models.student_plan import write_student_plan

    written = write_student_plan(dataset, plans_name, reduction, name, overwrite)
    table = Table("configuration", "teacher channels", "student channels", "teacher", "student", "ratio")
    for sizes in written.sizes:
        large, small = sizes.parameters
        channels = [" ".join(map(str, counts)) for counts in sizes.channels]
        ratio = f"1/{large / small:.1f}"
        table.add_row(sizes.configuration, *channels, f"{large / 1e6:.3f} M", f"{small / 1e6:.3f} M", ratio)
    console = Console()
    console.print(table)
    if written.left:
        left = ", ".join(f"{configuration} ({network})" for configuration, network in written.left)
        console.print(f"Left as they are, without features_per_stage: {left}.")
    command = [
        "nnUNetv2_train",
        dataset,
        "CONFIGURATION",
        "FOLD",
        "-tr",
        "nnUNetTrainerDCD",
        "-p",
        written.name,
    ]
    console.print(
        f"Wrote {written.path}\nTrain with: {shlex.join(command)}", soft_wrap=True, highlight=False, markup=False
    )
