"""``nnunet-kd doctor``: is everything there, and what would be used?"""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape

from nnunet_kd.cli.options import option
from nnunet_kd.errors import MissingRequirement, NnunetKdError
from nnunet_kd.nnunet.environment import (
    VARIABLES,
    find_trainer,
    required_folder,
    trainer_names,
)
from nnunet_kd.nnunet.folds import parse_fold
from nnunet_kd.system.cores import usable_cores
from nnunet_kd.system.counts import counted
from nnunet_kd.system.requirements import REQUIRED


def doctor(
    dataset: Annotated[Optional[str], typer.Argument(help="Dataset number or name to look at as well.")] = None,  # noqa: UP045
    configuration: Annotated[str, option("configuration", "Of the teacher.")] = "3d_fullres",
    fold: Annotated[str, option("folds", "Of the teacher; one.")] = "0",
    plans_name: Annotated[str, option("plans", "The teacher's plan.")] = "nnUNetPlans",
    teacher: Annotated[Optional[str], option("teacher", "As in nnunet-kd train.")] = None,  # noqa: UP045
) -> None:
    """Check versions, device, nnU-Net's folders and trainers; with a dataset, also its teacher and student."""
    fold = str(parse_fold(fold))
    console = Console(highlight=False)
    problems: list[str] = []

    def check(label: str, look: Callable[[], str]) -> None:
        try:
            console.print(f"[green]ok[/]       {label}: {escape(look())}", soft_wrap=True)
        except (NnunetKdError, ImportError, OSError) as error:
            if isinstance(error, ImportError) and not _is_of_installation(error):
                raise
            problems.append(label)
            console.print(f"[bold red]missing[/]  {label}: {escape(str(error))}", soft_wrap=True)

    for package in ("nnunet-kd", *REQUIRED.values()):
        check(package, lambda package=package: _version(package))  # type: ignore[misc]
    check("Python", platform.python_version)
    check("device", _device)
    for variable in VARIABLES:
        check(variable, lambda variable=variable: _folder(variable))  # type: ignore[misc]
    for name in trainer_names():
        check(name, lambda name=name: f"found by nnU-Net in {find_trainer(name).__module__}")  # type: ignore[misc]
    if dataset is not None:
        check("student", lambda: _student(dataset, configuration, plans_name, fold))
        check("teacher", lambda: _teacher(dataset, configuration, fold, plans_name, teacher))
    if problems:
        raise MissingRequirement(
            f"{counted(len(problems), 'check')} failed: {', '.join(problems)}. See above what to do."
        )
    console.print("Everything is in place.")


def _is_of_installation(error: ImportError) -> bool:
    """Whether a required package is missing, or there but cannot be loaded, for lack of a system's library for example."""
    if isinstance(error, ModuleNotFoundError):
        return error.name in REQUIRED
    return str(error.name).partition(".")[0] in REQUIRED


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
    if folder.exists() and not folder.is_dir():
        raise MissingRequirement(f"{folder} is a file. Set {variable} to a folder.")
    if not folder.is_dir():
        raise MissingRequirement(f"{folder} does not exist; create it with `mkdir -p {shlex.quote(str(folder))}`.")
    if not os.access(folder, os.W_OK):
        raise MissingRequirement(
            f"{folder} cannot be written to; change its permissions or set {variable} to another folder."
        )
    return str(folder)


def _student(dataset: str, configuration: str, plans_name: str, fold: str) -> str:
    from nnunet_kd.workflows.doctor import describe_student  # needs PyTorch and nnU-Net, which may be what is missing

    return describe_student(dataset, configuration, plans_name, fold)


def _teacher(dataset: str, configuration: str, fold: str, plans_name: str, path: str | None) -> str:
    from nnunet_kd.workflows.doctor import describe_teacher

    return describe_teacher(dataset, configuration, fold, plans_name, path)
