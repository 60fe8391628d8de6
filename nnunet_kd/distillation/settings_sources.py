"""Where a run's settings come from.

Later places win, key by key:

1. the trainer's own recipe (``dcd`` for ``nnUNetTrainerDCD``; ``nnunet-kd recipes show dcd`` prints it);
2. ``nnunet_kd.yaml`` in the preprocessed dataset folder. It may hold settings of several objectives; each trainer takes
   those that it uses;
3. ``NNUNET_KD_CONFIG``: a YAML file, or the name of a recipe. ``nnunet-kd train --recipe`` sets it;
4. ``nnunet-kd train --set key=value``, repeatable. Values are YAML: ``--set ema=0.999 --set objectives.dcd.bands=S``.
   ``NNUNET_KD_SET`` hands them on to spawned processes.

With ``--c`` the settings that the run was started with take the recipe's place, and only ``--set`` may change them. A training
that began at random does so whatever start the files prefer now.

Unknown keys are refused, with the nearest known one named. All problems of a file come in one message.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nnunet_kd.distillation.recipes import recipe_names, recipe_path
from nnunet_kd.distillation.settings import Settings, validate_settings
from nnunet_kd.distillation.settings_continued import (
    START,
    refuse_another_network,
    refuse_changes,
    without_known_maps,
    without_known_start,
    without_known_teacher,
)
from nnunet_kd.distillation.settings_model import did_you_mean
from nnunet_kd.errors import SettingsError
from nnunet_kd.system.counts import counted

CONFIG_VARIABLE = "NNUNET_KD_CONFIG"
SET_VARIABLE = "NNUNET_KD_SET"
DATASET_FILE = "nnunet_kd.yaml"
SETTINGS_FILE = "distillation_settings.yaml"
"""What a run writes beside its checkpoints; see :func:`saved_settings`."""
_BEFORE_START = {
    *("teacher", "feature_teacher", "reduction", "epochs", "iterations_per_epoch", "validation_iterations"),
    *("learning_rate", "mirror_axes", "seed", "ema", "patience", "save_every", "max_skipped_steps", "objectives"),
}
"""Every key that a run of version 0.1.0 writes into its settings file."""


def read_settings_file(name_or_path: str | Path) -> dict[str, Any]:
    """Read a YAML file, or a shipped recipe by its name.

    Raises:
        SettingsError: neither a file nor a recipe, or not a YAML mapping.
    """
    path = Path(name_or_path)
    if not path.is_file():
        if str(name_or_path) not in recipe_names():
            raise SettingsError(
                f"{str(name_or_path)!r} is neither a file nor a shipped recipe{did_you_mean(str(name_or_path), recipe_names())}. "
                f"Give the path of a YAML file, or one of the recipes: {', '.join(recipe_names())}."
            )
        path = recipe_path(str(name_or_path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold `key: value` lines, but holds a {type(content).__name__}.")
    return content


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``["objectives.dcd.weight=0.1", ...]`` as nested dictionaries; values are read as YAML.

    A value may be a mapping, which is laid over what stands there; of two values of one key, the later one holds.

    Raises:
        SettingsError: an assignment without ``=``, or two that contradict each other.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set {assignment!r} must have the form key=value, for example epochs=300.")
        *parents, last = key.strip().split(".")
        place: Any = result
        nested: dict[str, Any] = {last: _yaml_value(value, assignment)}
        for parent in parents:
            place = place.get(parent, {})
            if not isinstance(place, Mapping):
                raise SettingsError(f"--set {assignment!r} goes below {parent!r}, which another --set gave a value.")
        for parent in reversed(parents):
            nested = {parent: nested}
        result = merge(result, nested)
    return result


def _yaml_value(value: str, assignment: str) -> Any:
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {assignment!r}: the value cannot be read as YAML.") from error
    if isinstance(parsed, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]{1,3}", value.strip()):
        return float(parsed)  # YAML 1.1 takes 1e-3 for text
    return parsed


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, mapping by mapping; neither is changed.

    A teacher's ``trusted`` is for the path that it stands with; another path does not inherit it.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if key == "teacher" and isinstance(value, str):
            value = {"path": value}
        if key == "teacher" and isinstance(old, list) and len(old) == 1:
            old = {"path": old[0]} if isinstance(old[0], str) else old[0]
        if not isinstance(old, Mapping) or not isinstance(value, Mapping):
            merged[key] = value
            continue
        if key == "teacher" and old.get("path") not in (None, value.get("path", old.get("path"))):
            old = {name: said for name, said in old.items() if name != "trusted"}
        merged[key] = merge(old, value)
    return merged


def _refuse_one_of_several(base: Mapping[str, Any], over: Mapping[str, Any]) -> None:
    """Raise a SettingsError if there are several teachers, and ``over`` says something of one without saying which."""
    old, value = base.get("teacher"), over.get("teacher")
    if isinstance(old, list) and len(old) > 1 and isinstance(value, Mapping) and value.get("path") is None:
        raise SettingsError(
            f"{', '.join(f'teacher.{name}' for name in value)}: there are {counted(len(old), 'teacher')}, and this does "
            f"not say which one is meant. Give the whole list, for example --set 'teacher=[{{path: ..., trusted: ...}}, "
            f"...]', or a path together with it."
        )


def saved_settings(path: Path) -> dict[str, Any] | None:
    """The settings that a run wrote beside its checkpoints; ``None`` if there are none."""
    return read_settings_file(path) if path.is_file() else None


def resolve_settings(
    recipe: str,
    allowed_objectives: tuple[str, ...] | None,
    dataset_folder: Path | None = None,
    saved: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    starts_at_random: bool = False,
    planned: float | None = None,
) -> Settings:
    """Gather and validate the settings of a run.

    Args:
        recipe: the trainer's own recipe.
        allowed_objectives: the objectives of the trainer; files may hold settings of others, for other trainers, which are
            left out here. ``None`` allows all.
        dataset_folder: the preprocessed dataset folder, which may hold ``nnunet_kd.yaml``.
        saved: the settings of the run that is continued; they hold, and only ``--set`` may change them.
        environment: default ``os.environ``.
        starts_at_random: the trainer stands for students without a teacher: files, which may be meant for other trainers, do not
            say where it starts; ``--set`` does.
        planned: the reduction of a student's plan, which holds; ``None``: the plan is a teacher's.

    Raises:
        SettingsError: names every problem at once, with the source it comes from; or a file now says something else
            than the run that is continued, or ``--set`` asks for another reduction than the plan has.
    """
    environment = os.environ if environment is None else environment
    layers: list[tuple[str, dict[str, Any]]] = []
    if dataset_folder is not None and (dataset_folder / DATASET_FILE).is_file():
        layers.append((str(dataset_folder / DATASET_FILE), read_settings_file(dataset_folder / DATASET_FILE)))
    if environment.get(CONFIG_VARIABLE):
        config = environment[CONFIG_VARIABLE]
        layers.append((f"{CONFIG_VARIABLE}={config}", read_settings_file(config)))
    assignments = parse_assignments(json.loads(environment.get(SET_VARIABLE) or "[]"))

    start = dict(saved) if saved is not None else read_settings_file(recipe)
    validate_settings(start, f"recipe {recipe}" if saved is None else "the continued run's settings")
    merged = start
    for source, layer in layers:
        validate_settings(layer, source)
        layer = _with_what_came_later(_only_allowed(layer, allowed_objectives), source)
        if starts_at_random:
            layer = {key: value for key, value in layer.items() if key not in START}
        if planned is not None:  # recipes and files are meant for other plans, too
            layer = {key: value for key, value in layer.items() if key != "reduction"}
        if saved is not None:
            layer = without_known_start(without_known_teacher(layer, start, source), start, source)
            layer = without_known_maps(layer, start)
        else:  # else refused below, with what it was
            _refuse_one_of_several(merged, layer)
        merged = merge(merged, layer)
    _refuse_one_of_several(merged if saved is None else start, assignments)
    if assignments:
        validate_settings(assignments, "--set")
        surplus = sorted(set(assignments.get("objectives") or {}) - set(allowed_objectives or ()))
        if allowed_objectives is not None and surplus:
            raise SettingsError(
                f"--set objectives.{surplus[0]}: this trainer uses {', '.join(allowed_objectives) or 'no objective'}; "
                f"take the trainer of that objective."
            )
    if saved is not None:
        before, now = (merge(validate_settings(one, "settings").as_dict(), assignments) for one in (start, merged))
        refuse_changes(before, now)
    if planned is not None:
        _refuse_another_reduction(planned, assignments)
        assignments = {**assignments, "reduction": planned}
    elif saved is not None:
        refuse_another_network(start, assignments)
    return validate_settings(merge(merged, assignments), "the settings together")


def _refuse_another_reduction(planned: float, assignments: dict[str, Any]) -> None:
    if assignments.get("reduction", planned) != planned:
        raise SettingsError(
            f"--set reduction={assignments['reduction']}: the plan is a student's of reduction {planned:g}, whose channels are "
            f"not divided again. Leave reduction out, or give the teacher's plan (-p nnUNetPlans for example)."
        )


def is_asked_for(key: str, dataset_folder: Path | None = None, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a user's own file or ``--set`` names a top-level key; recipes, a trainer's own or shipped, do not count.

    Args:
        dataset_folder, environment: see :func:`resolve_settings`.
    """
    environment = os.environ if environment is None else environment
    files = [] if dataset_folder is None else [dataset_folder / DATASET_FILE]
    if environment.get(CONFIG_VARIABLE):
        files.append(Path(environment[CONFIG_VARIABLE]))
    assignments = parse_assignments(json.loads(environment.get(SET_VARIABLE) or "[]"))
    return key in assignments or any(path.is_file() and key in read_settings_file(path) for path in files)


def _with_what_came_later(layer: dict[str, Any], source: str) -> dict[str, Any]:
    """Settings that a run of 0.1.0 left behind mean that run's start and projections, whatever the recipe below them says."""
    return validate_settings(layer, source).as_dict() if layer.keys() == _BEFORE_START else layer


def _only_allowed(layer: dict[str, Any], allowed: tuple[str, ...] | None) -> dict[str, Any]:
    if allowed is None or not layer.get("objectives"):
        return layer
    return {**layer, "objectives": {name: value for name, value in layer["objectives"].items() if name in allowed}}
