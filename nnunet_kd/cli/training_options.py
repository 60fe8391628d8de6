"""What commands that set a training up have in common: nnU-Net's arguments, and distillation's settings."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nnunet_kd.cli.options import option
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.environment import find_trainer, preprocessed_dataset, required_folder

if TYPE_CHECKING:
    from nnunet_kd.distillation.settings import Settings

Dataset = Annotated[str, typer.Argument(help="Dataset number or name.")]
Configuration = Annotated[str, typer.Argument(help="2d, 3d_fullres, ...")]
Fold = Annotated[str, typer.Argument(help="0 to 4, or all.")]
Method = Annotated[
    str, option("method", "dcd, soft, inherited, student, kd, logits, ...: the trainer, without nnUNetTrainer.")
]
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


def check_device(device: str) -> None:
    """See :func:`nnunet_kd.nnunet.devices.check_device`, which needs PyTorch."""
    from nnunet_kd.nnunet.devices import check_device as check

    check(device)


def pass_settings(teachers: Sequence[str], recipe: str | None, assignments: Sequence[str]) -> None:
    """Options to environment variables, which the trainer reads whoever builds it.

    Raises:
        SettingsError: both ``teachers`` and ``assignments`` say where the teacher is.
    """
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
        given.append(f"teacher.path={json.dumps(paths[0])}")
    elif paths:
        given.append(f"teacher={json.dumps(paths)}")
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
) -> tuple[Settings, str | None]:
    """The settings as the trainer will resolve them, with everything that can be wrong before it is built.

    Args:
        trainer: its name.
        dataset, configuration, plans_name, fold: as given.
        pretrained_weights: a checkpoint or model folder to start from; see
            :func:`~nnunet_kd.distillation.starts.pretrained.find_pretrained`.

    Returns:
        The settings, and the path of the checkpoint to start from.

    Raises:
        NnunetKdError: folders, dataset, settings, plan or pretrained weights.
    """
    from nnunet_kd.models.plans import planned_reduction, read_plans, reduce_plans

    required_folder("nnUNet_results")
    folder, dataset_json = preprocessed_dataset(dataset)
    trainer_class = find_trainer(trainer)
    plans = read_plans(folder / f"{plans_name}.json")
    settings: Settings = trainer_class.resolve(folder, planned=planned_reduction(plans, configuration))
    student = reduce_plans(plans, settings.reduction, required=configuration)
    if pretrained_weights is None:
        return settings, None
    from nnunet_kd.distillation.starts.pretrained import find_pretrained

    return settings, str(find_pretrained(pretrained_weights, student, configuration, dataset_json, fold).path)
