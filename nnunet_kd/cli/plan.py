"""``nnunet-kd plan``: write a student's plan beside its teacher's."""

from __future__ import annotations

import shlex
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.nnunet.environment import preprocessed_dataset


def plan(
    dataset: Annotated[str, typer.Argument(help="Dataset number or name.")],
    plans_name: Annotated[str, option("plans", "The teacher's plan.")] = "nnUNetPlans",
    reduction: Annotated[float, option("reduction", "Divide every stage's channels by this.")] = 4.0,
    name: Annotated[
        Optional[str],  # noqa: UP045  typer on Python 3.10
        typer.Option("--name", help="Of the student's plan. Default: PLANS_r4, with the reduction."),
    ] = None,
    overwrite: Annotated[bool, option("overwrite", "Replace a plan of that name with other content.")] = False,
) -> None:
    """Write the plan of a student with 1/r of the teacher's channels. It uses the data as already preprocessed."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_kd.models.plans import (
        build_meta_network,
        inputs_and_heads,
        named_student_plans,
        parameter_count,
        provenance,
        read_plans,
        stage_channels,
        write_plans,
    )

    folder, dataset_json = preprocessed_dataset(dataset)
    teacher = read_plans(folder / f"{plans_name}.json")
    # the file's name, not the one within: a plan that was copied often keeps the old one
    student = named_student_plans(teacher, reduction, name or f"{plans_name}_r{reduction:g}")
    target = folder / f"{student['plans_name']}.json"

    table = Table("configuration", "teacher channels", "student channels", "teacher", "student", "ratio")
    manager = PlansManager(student)
    skipped = []
    for name in student["configurations"]:
        if provenance(student, name) is None:
            skipped.append(f"{name} ({manager.get_configuration(name).network_arch_class_name.split('.')[-1]})")
            continue
        inputs, outputs = inputs_and_heads(student, name, dataset_json)
        large, small = (
            parameter_count(build_meta_network(plans, name, inputs, outputs)) for plans in (teacher, student)
        )
        channels = [" ".join(str(count) for count in stage_channels(plans, name)) for plans in (teacher, student)]
        table.add_row(name, *channels, f"{large / 1e6:.3f} M", f"{small / 1e6:.3f} M", f"1/{large / small:.1f}")
    write_plans(student, target, overwrite)
    console = Console()
    console.print(table)
    if skipped:
        console.print(f"Left as they are, without features_per_stage: {', '.join(skipped)}.")
    command = [
        "nnUNetv2_train",
        dataset,
        "CONFIGURATION",
        "FOLD",
        "-tr",
        "nnUNetTrainerDCD",
        "-p",
        student["plans_name"],
    ]
    console.print(f"Wrote {target}\nTrain with: {shlex.join(command)}", soft_wrap=True, highlight=False, markup=False)
