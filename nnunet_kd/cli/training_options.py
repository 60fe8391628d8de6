"""What commands that set a training up have in common: nnU-Net's arguments, and distillation's settings."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nnunet_kd.cli.options import option
from nnunet_kd.errors import MissingRequirement, ModelError, SettingsError
from nnunet_kd.nnunet.checkpoints import BEST, FINAL
from nnunet_kd.nnunet.environment import (
    find_trainer,
    method_trainer,
    preprocessed_dataset,
    required_folder,
    shipped_trainer,
)
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.system.files import check_output

if TYPE_CHECKING:
    from nnunet_kd.distillation.settings import Settings

Dataset = Annotated[str, typer.Argument(help="Dataset number or name.")]
Configuration = Annotated[str, typer.Argument(help="2d, 3d_fullres, ...")]
Fold = Annotated[str, typer.Argument(help="0 to 4, or all.")]
METHODS = "dcd, soft, inherited, student, kd, logits, ...: the trainer, without nnUNetTrainer."
Method = Annotated[str, option("method", METHODS)]
Teachers = Annotated[
    Optional[list[str]],  # noqa: UP045  typer on Python 3.10
    option(
        "teacher",
        "Model folder, checkpoint_*.pth or exported zip; repeat it for several teachers. Default: searched for.",
    ),
]
Recipe = Annotated[Optional[str], option("recipe", "A shipped recipe's name or a YAML file.")]  # noqa: UP045
Assignments = Annotated[
    Optional[list[str]],  # noqa: UP045
    option("set", "Any setting, for example --set epochs=300; repeatable.", metavar="KEY=VALUE"),
]
PlansName = Annotated[str, option("plans", "The teacher's plan, or a student's.")]
Device = Annotated[str, option("device", "cuda, cpu or mps.")]


def chosen_trainer(method: str | None, trainer: str | None) -> str:
    """The trainer that ``-m`` or ``-tr`` names; without both DCD's.

    Raises:
        SettingsError: both are given, or there is no such method or trainer.
    """
    if trainer is None:
        return method_trainer("dcd" if method is None else method)
    if method is not None:
        raise SettingsError(f"-m {method} and -tr {trainer} both say which trainer is meant. Leave one of them out.")
    return shipped_trainer(trainer)


def check_device(device: str, known: Sequence[str] | None = None) -> None:
    """See :func:`nnunet_kd.nnunet.devices.check_device`, which needs PyTorch; ``known``: ``None`` for all of nnU-Net's."""
    from nnunet_kd.nnunet.devices import DEVICES
    from nnunet_kd.nnunet.devices import check_device as check

    check(device, DEVICES if known is None else known)


def pass_settings(teachers: Sequence[str], recipe: str | None, assignments: Sequence[str]) -> None:
    """Options to environment variables, which the trainer reads whoever builds it.

    Raises:
        SettingsError: both ``teachers`` and ``assignments`` say where the teacher is.
    """
    from nnunet_kd.distillation.settings_model import yaml_text
    from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE, parse_assignments

    given = list(assignments)
    named = parse_assignments(given).get("teacher") if teachers else None
    if named is not None and (len(teachers) > 1 or not isinstance(named, Mapping) or named.get("path") is not None):
        raise SettingsError(
            f"both -t {shlex.quote(teachers[0])} and --set teacher say which teacher is meant. Leave one of them out; with "
            f"several teachers, --set teacher='[{{path: ..., trusted: ...}}, ...]' says all of each."
        )
    paths = [os.path.abspath(os.path.expanduser(teacher)) for teacher in teachers]
    if len(paths) == 1:
        given.append(f"teacher.path={yaml_text(paths[0])}")
    elif paths:
        given.append(f"teacher={yaml_text(paths)}")
    if recipe is not None:
        os.environ[CONFIG_VARIABLE] = os.path.abspath(recipe) if os.path.isfile(recipe) else recipe
    os.environ[SET_VARIABLE] = json.dumps(given)


def check_settings(
    trainer: str,
    dataset: str,
    configuration: str,
    plans_name: str,
    fold: str = "0",
    pretrained_weights: str | None = None,
    begun: bool = False,
) -> tuple[Settings, str | None]:
    """The settings as the trainer will resolve them, with everything that can be wrong before it is built.

    Args:
        trainer: its name.
        dataset, configuration, plans_name, fold: as given.
        pretrained_weights: a checkpoint or model folder to start from; see
            :func:`~nnunet_kd.distillation.starts.pretrained.find_pretrained`.
        begun: the training has a checkpoint, so that its fold was there.

    Returns:
        The settings, and the path of the checkpoint to start from.

    Raises:
        NnunetKdError: folders, dataset, fold, settings, plan or pretrained weights.
    """
    from nnunet_kd.evaluation.runs import check_fold
    from nnunet_kd.models.plans import planned_reduction, read_plans, reduce_plans

    required_folder("nnUNet_results")
    folder, dataset_json = preprocessed_dataset(dataset)
    if not begun:
        check_fold(folder, fold)
    trainer_class = find_trainer(trainer)
    plans = read_plans(folder / f"{plans_name}.json")
    settings: Settings = trainer_class.resolve(folder, planned=planned_reduction(plans, configuration))
    student = reduce_plans(plans, settings.reduction, required=configuration)
    if pretrained_weights is None:
        return settings, None
    from nnunet_kd.distillation.starts.pretrained import find_pretrained

    return settings, str(find_pretrained(pretrained_weights, student, configuration, dataset_json, fold).path)


def check_start(trainer: str, start: str, fold: str) -> None:
    """Whether a new training can start as its settings say; the trainer itself checks more.

    Args:
        trainer: its name.
        start: the setting.
        fold: of the training.

    Raises:
        SettingsError: the trainer needs another start, or there is no such student.
    """
    from nnunet_kd.distillation.starts.student import RANDOM, TEACHER, pin_start, random_start_refused

    if start == RANDOM and find_trainer(trainer).requires_start:
        raise SettingsError(random_start_refused(trainer))
    if start not in (RANDOM, TEACHER):
        pin_start(start, fold)


def fold_folder(trainer: str, dataset: str, configuration: str, plans_name: str, fold: str) -> Path:
    """Where a training lies: nnU-Net's ``DATASET/TRAINER__PLANS__CONFIGURATION/fold_X``.

    Raises:
        NnunetKdError: folders, dataset or plan.
    """
    from nnunet_kd.models.plans import read_plans

    results = required_folder("nnUNet_results")
    folder, _ = preprocessed_dataset(dataset)
    plans = read_plans(folder / f"{plans_name}.json")
    model = f"{trainer}__{plans['plans_name']}__{configuration}"
    return results / str(plans["dataset_name"]) / model / f"fold_{fold}"


def check_places(folder: Path, dataset: str) -> None:
    """Whether nnU-Net can write a training, and the splits if there are none yet.

    Args:
        folder: see :func:`fold_folder`.
        dataset: its number or name.

    Raises:
        MissingRequirement: one of them cannot be written.
    """
    check_output(folder, "the training's folder", "Change its permissions, or set nnUNet_results to another folder.")
    preprocessed, _ = preprocessed_dataset(dataset)
    without_splits = folder.name != "fold_all" and not (preprocessed / SPLITS_FILE).is_file()
    if without_splits and not os.access(preprocessed, os.W_OK):
        raise MissingRequirement(
            f"{preprocessed} has no {SPLITS_FILE}, and it cannot be written there. Change the folder's permissions."
        )


def check_validation(folder: Path, best: bool) -> None:
    """Whether a fold is trained, so that it can be validated alone.

    Args:
        folder: see :func:`fold_folder`.
        best: with ``checkpoint_best.pth``.

    Raises:
        ModelError: it lacks a checkpoint.
    """
    there = sorted(path.name for path in folder.glob("checkpoint_*.pth"))
    if FINAL not in there:
        found = f"Found: {', '.join(there)}. Finish the training with --c" if there else "Train it without --val"
        raise ModelError(f"--val: {folder} has no {FINAL}, so this fold is not trained to its end. {found}.")
    if best and BEST not in there:
        raise ModelError(f"--val_best: {folder} has no {BEST}. Leave --val_best out to validate with {FINAL}.")
