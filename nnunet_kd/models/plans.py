"""The student's plan: the teacher's, with every stage's channels divided by ``r``.

A student is described completely by its plan, so that stock nnU-Net builds it. Every reduced configuration carries a block
``nnunet_kd`` that says what it came from; a configuration that has it is never divided again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_kd.errors import PlanError
from nnunet_kd.nnunet.networks import network_inputs, planned_network
from nnunet_kd.system.files import write_atomically

MARK = "nnunet_kd"
"""Key of a reduced configuration's provenance block."""

_CHANNEL_KEYS = ("features_per_stage", "stem_channels", "bottleneck_channels")


def reduce_channels(channels: int, reduction: float) -> int:
    """``floor(channels / r)``.

    Raises:
        PlanError: less than one channel would be left.
    """
    reduced = math.floor(channels / reduction)
    if reduced < 1:
        raise PlanError(
            f"a reduction of r={reduction:g} leaves less than one of {channels} channels. "
            f"Choose r of at most {channels}."
        )
    return reduced


def provenance(plans: Mapping[str, Any], configuration: str) -> dict[str, Any] | None:
    """The ``nnunet_kd`` block of a student's configuration (own or inherited); ``None`` for any other configuration."""
    block: dict[str, Any] | None = _resolved(plans, configuration).configuration.get(MARK)
    return block


def planned_reduction(plans: Mapping[str, Any], configuration: str) -> float | None:
    """The reduction of a student's plan, whose channels are not divided again; ``None``: it is a teacher's."""
    mark = provenance(plans, configuration) if configuration in plans["configurations"] else None
    return None if mark is None else float(mark["reduction"])


def reduce_plans(plans: Mapping[str, Any], reduction: float, required: str | None = None) -> dict[str, Any]:
    """Divide the channels of every configuration that has ``features_per_stage`` by ``reduction``.

    Configurations that are already reduced stay as they are, and so do those of another architecture family.
    Configurations that inherit their architecture inherit the reduced one.

    Args:
        plans: an nnU-Net plan; left untouched.
        reduction: ``r >= 1``; channels are rounded down.
        required: a configuration that must be reducible.

    Returns:
        The reduced plan, under the name it had.

    Raises:
        PlanError: ``required`` (or, without it, every configuration) has no ``features_per_stage``; ``r`` is below 1 or
            leaves less than one channel.
    """
    if reduction < 1:
        raise PlanError(f"the reduction r must be at least 1, got {reduction:g}.")
    if required is not None:
        _check_reducible(_resolved(plans, required), required)
    reduced = deepcopy(dict(plans))
    changed = []
    for name, own in reduced["configurations"].items():
        resolved = _resolved(plans, name).configuration
        if MARK in resolved:
            changed.append(name)
            continue
        inherits = "inherits_from" in own and "architecture" not in own and "UNet_class_name" not in own
        if inherits or "features_per_stage" not in resolved["architecture"]["arch_kwargs"]:
            continue
        architecture = deepcopy(resolved["architecture"])
        arguments = architecture["arch_kwargs"]
        teacher_features = arguments["features_per_stage"]
        for key in _CHANNEL_KEYS:
            if arguments.get(key) is not None:
                arguments[key] = _reduce(arguments[key], reduction)
        own["architecture"] = architecture
        own[MARK] = {
            "reduction": reduction,
            "teacher_plans_name": plans["plans_name"],
            "teacher_features_per_stage": teacher_features,
        }
        changed.append(name)
    if not changed:
        _check_reducible(_resolved(plans, next(iter(plans["configurations"]))), next(iter(plans["configurations"])))
    return reduced


def named_student_plans(plans: Mapping[str, Any], reduction: float, name: str | None = None) -> dict[str, Any]:
    """A reduced plan under a name of its own, to be used with ``-p``.

    Args:
        plans: the teacher's.
        reduction: see :func:`reduce_plans`.
        name: default: the teacher plan's with the reduction, ``nnUNetPlans_r4``.

    Raises:
        PlanError: the plan is a student's already; see also :func:`reduce_plans`.
    """
    marked = [name for name in plans["configurations"] if provenance(plans, name) is not None]
    if marked:
        raise PlanError(
            f"the plan {plans['plans_name']!r} is a student's already (configuration {marked[0]!r} came from "
            f"{provenance(plans, marked[0])!r}); give the teacher's plan, -p nnUNetPlans for example."
        )
    reduced = reduce_plans(plans, reduction)
    reduced["plans_name"] = name or f"{plans['plans_name']}_r{reduction:g}"
    return reduced


def _where_plans_come_from(folder: Path) -> str:
    if any(folder.glob("fold_*")):
        return "A model folder has its training's plans.json; copy it there."
    return "nnUNetv2_plan_and_preprocess writes a dataset's plans."


def read_plans(path: Path) -> dict[str, Any]:
    """Read a plan.

    Raises:
        PlanError: the file is missing, cannot be read, is not JSON, or not an nnU-Net plan.
    """
    try:
        if not path.is_file():
            there = sorted(file.stem for file in path.parent.glob("*Plans*.json")) if path.parent.is_dir() else []
            raise PlanError(
                f"there is no plan at {path}. "
                + (f"Plans found beside it: {', '.join(there)}." if there else _where_plans_come_from(path.parent))
            )
        plans = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is not valid JSON: {error}. Correct it there.") from error
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not isinstance(plans, dict):
        raise PlanError(f"{path} is not an nnU-Net plan: it holds no JSON object.")
    missing = [key for key in ("plans_name", "dataset_name", "configurations") if key not in plans]
    if missing:
        raise PlanError(f"{path} is not an nnU-Net plan: it has no {', '.join(missing)}.")
    if not isinstance(plans["configurations"], dict):
        raise PlanError(f"{path} is not an nnU-Net plan: its configurations are no JSON object.")
    return plans


def write_plans(plans: Mapping[str, Any], path: Path, overwrite: bool = False) -> None:
    """Write a plan; a crash leaves what was there.

    Args:
        plans: to write.
        path: its file; one with the same content may be there.
        overwrite: replace a file with other content.

    Raises:
        PlanError: a file with other content is there.
    """
    if path.exists() and not overwrite and _content(path) != json.loads(json.dumps(plans)):
        raise PlanError(
            f"{path} is there already, with other content: it was edited, or made from another plan. Keep it and write the new "
            f"plan under another name with --name NAME, or replace it with --overwrite."
        )
    write_atomically(path, lambda file: file.write(json.dumps(plans, indent=4).encode()))


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def stage_channels(plans: Mapping[str, Any], configuration: str) -> tuple[int, ...]:
    """``features_per_stage`` as one number a stage."""
    arguments = _resolved(plans, configuration).network_arch_init_kwargs
    features = arguments["features_per_stage"]
    return (features,) * arguments["n_stages"] if isinstance(features, int) else tuple(features)


def inputs_and_heads(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> tuple[int, int]:
    """Input channels (with a cascade's previous stage) and segmentation heads of a configuration's network."""
    manager, dataset = PlansManager(dict(plans)), dict(dataset_json)
    inputs = network_inputs(manager, _resolved(plans, configuration), dataset)
    return inputs, int(manager.get_label_manager(dataset).num_segmentation_heads)


def build_meta_network(plans: Mapping[str, Any], configuration: str, inputs: int, outputs: int) -> nn.Module:
    """The configuration's network on the meta device: shapes without memory.

    Args:
        inputs, outputs: input channels and segmentation heads.
    """
    with torch.device("meta"):
        return planned_network(_resolved(plans, configuration), inputs, outputs, initialised=False)


def parameter_count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _resolved(plans: Mapping[str, Any], configuration: str) -> ConfigurationManager:
    if configuration not in plans["configurations"]:
        raise PlanError(
            f"the plan {plans['plans_name']!r} has no configuration {configuration!r}; "
            f"it has {', '.join(plans['configurations'])}."
        )
    return PlansManager(dict(plans)).get_configuration(configuration)


def _check_reducible(resolved: ConfigurationManager, name: str) -> None:
    if MARK not in resolved.configuration and "features_per_stage" not in resolved.network_arch_init_kwargs:
        raise PlanError(
            f"the architecture of configuration {name!r}, {resolved.network_arch_class_name}, has no features_per_stage, "
            f"so its channels cannot be reduced. PlainConvUNet, ResidualEncoderUNet and their relatives can."
        )


def _reduce(channels: int | list[int] | tuple[int, ...], reduction: float) -> int | list[int]:
    if isinstance(channels, int):
        return reduce_channels(channels, reduction)
    return [reduce_channels(count, reduction) for count in channels]
