"""``nnunet-kd doctor``: is everything there, and what would be used?"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape

from nnunet_kd.cli.options import option
from nnunet_kd.cli.training_options import check_fold
from nnunet_kd.errors import MissingRequirement, NnunetKdError
from nnunet_kd.nnunet.environment import (
    VARIABLES,
    find_trainer,
    optional_folder,
    preprocessed_dataset,
    required_folder,
    trainer_names,
)
from nnunet_kd.system.cores import usable_cores
from nnunet_kd.system.counts import counted

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("nnunet-kd", "nnunetv2", "torch", "dynamic-network-architectures", "PyWavelets", "ptwt", "numpy")


def doctor(
    dataset: Annotated[Optional[str], typer.Argument(help="Dataset number or name to look at as well.")] = None,  # noqa: UP045
    configuration: Annotated[str, option("configuration", "Of the teacher.")] = "3d_fullres",
    fold: Annotated[str, option("folds", "Of the teacher; one.")] = "0",
    plans_name: Annotated[str, option("plans", "The teacher's plan.")] = "nnUNetPlans",
    teacher: Annotated[Optional[str], option("teacher", "As in nnunet-kd train.")] = None,  # noqa: UP045
) -> None:
    """Check versions, device, nnU-Net's folders and trainers; with a dataset, also its teacher and student."""
    check_fold(fold)
    console = Console(highlight=False)
    problems: list[str] = []

    def check(label: str, look: Callable[[], str]) -> None:
        try:
            console.print(f"[green]ok[/]       {label}: {escape(look())}", soft_wrap=True)
        except NnunetKdError as error:
            problems.append(label)
            console.print(f"[bold red]missing[/]  {label}: {escape(str(error))}", soft_wrap=True)

    for package in PACKAGES:
        check(package, lambda package=package: _version(package))  # type: ignore[misc]
    check("Python", platform.python_version)
    check("device", _device)
    for variable in VARIABLES:
        check(variable, lambda variable=variable: _folder(variable))  # type: ignore[misc]
    for name in trainer_names():
        check(name, lambda name=name: f"found by nnU-Net in {find_trainer(name).__module__}")  # type: ignore[misc]
    if dataset is not None:
        check("student", lambda: _student(dataset, configuration, plans_name))
        check("teacher", lambda: _teacher(dataset, configuration, fold, plans_name, teacher))
    if problems:
        raise MissingRequirement(
            f"{counted(len(problems), 'check')} failed: {', '.join(problems)}. See above what to do."
        )
    console.print("Everything is in place.")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        command = "pip install -e .` in its clone" if package == "nnunet-kd" else f"pip install {package}`"
        raise MissingRequirement(f"not installed; run `{command}.") from error


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{counted(len(names), 'CUDA device')}: {', '.join(names)}"
    return f"CPU only, {counted(usable_cores(), 'core')}; train with -device cpu"


def _folder(variable: str) -> str:
    folder = required_folder(variable)
    if not folder.is_dir():
        raise MissingRequirement(f"{folder} does not exist; create it with `mkdir -p {shlex.quote(str(folder))}`.")
    if not os.access(folder, os.W_OK):
        raise MissingRequirement(
            f"{folder} cannot be written to; change its permissions or set {variable} to another folder."
        )
    return str(folder)


def _student(dataset: str, configuration: str, plans_name: str) -> str:
    from nnunet_kd.distillation.settings_sources import resolve_settings
    from nnunet_kd.models.plans import (
        build_meta_network,
        inputs_and_heads,
        parameter_count,
        provenance,
        read_plans,
        reduce_plans,
    )

    folder, dataset_json = preprocessed_dataset(dataset)
    plans = read_plans(folder / f"{plans_name}.json")
    settings = resolve_settings("student", (), folder)
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


def _teacher(dataset: str, configuration: str, fold: str, plans_name: str, path: str | None) -> str:
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_kd.distillation.features import has_encoder
    from nnunet_kd.distillation.settings import TeacherSettings
    from nnunet_kd.distillation.settings_sources import resolve_settings
    from nnunet_kd.distillation.teacher import found_teacher, load_teacher
    from nnunet_kd.models.plans import build_meta_network, inputs_and_heads, read_plans, reduce_plans

    folder, dataset_json = preprocessed_dataset(dataset)
    plans = read_plans(folder / f"{plans_name}.json")
    settings = resolve_settings("student", (), folder)
    student = reduce_plans(plans, settings.reduction, required=configuration)
    sizes = inputs_and_heads(student, configuration, dataset_json)
    dimensions = len(PlansManager(student).get_configuration(configuration).patch_size)
    results = optional_folder("nnUNet_results")
    found: list[str] = []
    start = ""
    for chosen in settings.teachers() if path is None else [TeacherSettings(path=path)]:
        with found_teacher(chosen, results, student, configuration, fold, dataset_json, stages=False) as teacher:
            loaded = load_teacher(teacher.source, torch.device("cpu"), trusted=chosen.trusted)
            axes = loaded.mirror_axes
            if not found:
                start = _start(loaded.network, build_meta_network(student, configuration, *sizes))
            found.append(f"{teacher.source}, SHA-256 {teacher.settings.sha256}")
            found[-1] += "".join(f", WARNING: {told}" for told in (*loaded.warnings, *teacher.warnings))
            if not has_encoder(loaded.network):
                found[-1] += (
                    f", a {type(loaded.network).__name__} without stage features, which teaches by its logits alone"
                )
            elif teacher.other_stages:
                found[-1] += f", which teaches by its logits alone (-m logits or -m figkd), {teacher.other_stages}"
            if len(axes) < dimensions:
                found[-1] += (
                    f", mirrors {'axes ' + ', '.join(map(str, axes)) if axes else 'no axis'}, as its students will; for "
                    f"nnUNetTrainerStudent say so: mirror_axes={json.dumps(axes)}"
                )
    return "; ".join([*found, start])


def _start(teacher: nn.Module, student: nn.Module) -> str:
    """Whether a student can start inside its (first) teacher."""
    from nnunet_kd.distillation.starts.pairing import pair
    from nnunet_kd.errors import PlanError

    try:
        pair(teacher, student)
    except PlanError as error:
        return f"no student can start inside it ({error}): trainers start at random, and nnUNetTrainerInherited refuses"
    return "students can start inside it (start: teacher), nnunet-kd inherit shows how good that is"
