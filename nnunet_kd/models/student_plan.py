"""A student's plan made from its teacher's, with what both networks' sizes are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from nnunet_kd.nnunet.environment import preprocessed_dataset


@dataclass(frozen=True)
class Sizes:
    """Of one configuration, teacher's and student's: channels of every stage, and parameters."""

    configuration: str
    channels: tuple[tuple[int, ...], tuple[int, ...]]
    parameters: tuple[int, int]


@dataclass(frozen=True)
class StudentPlan:
    """A plan that was written.

    Attributes:
        name: of the plan.
        path: of its file.
        sizes: of every configuration with fewer channels.
        left: the other configurations' names, with their networks'.
    """

    name: str
    path: Path
    sizes: tuple[Sizes, ...]
    left: tuple[tuple[str, str], ...]


def write_student_plan(
    dataset: str, teacher_plans: str, reduction: float, name: str | None = None, overwrite: bool = False
) -> StudentPlan:
    """Write the plan of a student with 1/``reduction`` of the teacher's channels beside its teacher's.

    Args:
        dataset: number or name; preprocessed.
        teacher_plans: the teacher's plan, by its file's name without ending.
        name: of the student's plan; default: the teacher's with ``_r4``, if that is the reduction.
        overwrite: replace a plan of that name with other content.

    Raises:
        MissingRequirement, DataError: the dataset.
        PlanError: the teacher's plan, or another plan that has the name.
    """
    folder, dataset_json = preprocessed_dataset(dataset)
    teacher = read_plans(folder / f"{teacher_plans}.json")
    # the file's name, not the one within: a plan that was copied often keeps the old one
    student = named_student_plans(teacher, reduction, name or f"{teacher_plans}_r{reduction:g}")
    path = folder / f"{student['plans_name']}.json"
    manager = PlansManager(student)
    sizes, left = [], []
    for configuration in student["configurations"]:
        if provenance(student, configuration) is None:
            network = manager.get_configuration(configuration).network_arch_class_name
            left.append((configuration, network.split(".")[-1]))
            continue
        inputs, outputs = inputs_and_heads(student, configuration, dataset_json)
        large, small = (
            parameter_count(build_meta_network(plans, configuration, inputs, outputs)) for plans in (teacher, student)
        )
        channels = (stage_channels(teacher, configuration), stage_channels(student, configuration))
        sizes.append(Sizes(configuration, channels, (large, small)))
    write_plans(student, path, overwrite)
    return StudentPlan(student["plans_name"], path, tuple(sizes), tuple(left))
