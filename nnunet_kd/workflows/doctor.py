"""What a training on a dataset would use: its student, its teachers, and whether one starts inside the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.distillation.features import has_encoder
from nnunet_kd.distillation.frozen_teacher import FrozenTeacher
from nnunet_kd.distillation.settings import Settings
from nnunet_kd.distillation.settings_model import yaml_text
from nnunet_kd.distillation.settings_sources import DATASET_FILE, SET_VARIABLE, resolve_settings
from nnunet_kd.distillation.starts.pairing import pair
from nnunet_kd.distillation.starts.student import RANDOM, TEACHER, pin_start
from nnunet_kd.distillation.teacher import FoundTeacher, found_teacher, load_teacher
from nnunet_kd.errors import PlanError
from nnunet_kd.evaluation.runs import check_fold
from nnunet_kd.models.plans import (
    build_meta_network,
    inputs_and_heads,
    parameter_count,
    planned_reduction,
    provenance,
    read_plans,
    reduce_plans,
)
from nnunet_kd.nnunet.environment import optional_folder, preprocessed_dataset


def describe_student(dataset: str, configuration: str, plans_name: str, fold: str) -> str:
    """The student's size, and whether its plan has it or it is derived.

    Args:
        dataset: number or name; preprocessed.
        configuration: of the teacher.
        plans_name: the teacher's plan, or a student's.
        fold: of the student, for a start from another one.

    Raises:
        NnunetKdError: folders, dataset, settings, start or plan.
    """
    folder, dataset_json = preprocessed_dataset(dataset)
    plans = read_plans(folder / f"{plans_name}.json")
    settings = _settings(folder, plans, configuration)
    if settings.start not in (RANDOM, TEACHER):
        pin_start(settings.start, fold)
    student = reduce_plans(plans, settings.reduction, required=configuration)
    inputs, outputs = inputs_and_heads(student, configuration, dataset_json)
    size = parameter_count(build_meta_network(student, configuration, inputs, outputs))
    own = parameter_count(build_meta_network(plans, configuration, inputs, outputs))
    made = (
        "as the plan has it"
        if provenance(plans, configuration)
        else f"from {own / 1e6:.3f} M at r={settings.reduction:g}"
    )
    return f"{size / 1e6:.3f} M parameters, {made}"


def describe_teacher(dataset: str, configuration: str, fold: str, plans_name: str, path: str | None) -> str:
    """The teachers that would be loaded, with what limits them, and whether students start inside the first.

    Args:
        dataset, configuration, plans_name: see :func:`describe_student`.
        fold: of the teacher, which the dataset's splits must have.
        path: the teacher's, as in ``nnunet-kd train -t``; ``None``: as the settings say.

    Raises:
        NnunetKdError: folders, dataset, settings or plan; there is no teacher, or it does not fit.
    """
    folder, dataset_json = preprocessed_dataset(dataset)
    plans = read_plans(folder / f"{plans_name}.json")
    check_fold(folder, fold)
    settings = _settings(folder, plans, configuration, path)
    student = reduce_plans(plans, settings.reduction, required=configuration)
    sizes = inputs_and_heads(student, configuration, dataset_json)
    dimensions = len(PlansManager(student).get_configuration(configuration).patch_size)
    results = optional_folder("nnUNet_results")
    found: list[str] = []
    start = ""
    for chosen in settings.teachers():
        with found_teacher(chosen, results, student, configuration, fold, dataset_json, stages=False) as teacher:
            loaded = load_teacher(teacher.source, torch.device("cpu"), trusted=chosen.trusted)
            if not found:
                own = build_meta_network(student, configuration, *sizes)
                start = _start(loaded.network, own, settings.start == TEACHER)
            found.append(", ".join(_facts(teacher, loaded, dimensions)))
    return "; ".join([*found, start])


def _settings(folder: Path, plans: Mapping[str, Any], configuration: str, teacher: str | None = None) -> Settings:
    """What files and variables say of every training on a dataset, and ``-t`` of its teacher.

    Raises:
        SettingsError: what a training would be refused for.
    """
    environment = dict(os.environ)
    if teacher is not None:  # as train sets it
        path = os.path.abspath(os.path.expanduser(teacher))
        environment[SET_VARIABLE] = json.dumps([f"teacher.path={yaml_text(path)}"])
    planned = planned_reduction(plans, configuration)
    settings = resolve_settings("student", (), folder, environment=environment, planned=planned)
    if configuration in plans["configurations"]:
        patch_size = PlansManager(dict(plans)).get_configuration(configuration).patch_size
        settings.check_axes(configuration, len(patch_size))
    return settings


def _facts(teacher: FoundTeacher, loaded: FrozenTeacher, dimensions: int) -> Iterator[str]:
    yield str(teacher.source)
    yield f"SHA-256 {teacher.settings.sha256}"
    for told in (*loaded.warnings, *teacher.warnings):
        yield f"WARNING: {told}"
    if not has_encoder(loaded.network):
        yield f"a {type(loaded.network).__name__} without stage features, which teaches by its logits alone"
    elif teacher.other_stages:
        yield f"which teaches by its logits alone (-m logits or -m figkd), {teacher.other_stages}"
    axes = loaded.mirror_axes
    if len(axes) < dimensions:
        mirrored = f"axes {', '.join(map(str, axes))}" if axes else "no axis"
        say_so = f"for nnUNetTrainerStudent say so: mirror_axes={json.dumps(axes)}"
        yield f"mirrors {mirrored}, as its students will; {say_so}"


def _start(teacher: nn.Module, student: nn.Module, asked: bool) -> str:
    """Whether a student can start inside its (first) teacher; ``asked``: whether the dataset's settings file wants that."""
    try:
        pair(teacher, student)
    except PlanError as error:
        others = "trainers start at random, and nnUNetTrainerInherited refuses"
        if asked:
            others = f"trainers refuse, because {DATASET_FILE} says start: teacher"
        return f"no student can start inside it ({error}): {others}"
    return "students can start inside it (start: teacher), nnunet-kd inherit shows how good that is"
