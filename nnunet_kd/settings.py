"""A run's settings: one validated model, gathered from four places.

Later ones win, key by key: the trainer's own recipe, ``nnunet_kd.yaml`` in the preprocessed dataset folder, the file or
shipped recipe that ``NNUNET_KD_CONFIG`` names, ``--set key=value`` of the command line (handed on in ``NNUNET_KD_SET``, so
that spawned workers see it).
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, field_validator, model_validator

from nnunet_kd.errors import SettingsError
from nnunet_kd.frozen_teacher import FeatureTeacher
from nnunet_kd.objectives import OBJECTIVES
from nnunet_kd.objectives.base import ObjectiveSettings
from nnunet_kd.settings_model import SettingsModel
from nnunet_kd.shipped import shipped_folder

CONFIG_VARIABLE = "NNUNET_KD_CONFIG"
SET_VARIABLE = "NNUNET_KD_SET"
DATASET_FILE = "nnunet_kd.yaml"


class TeacherSettings(SettingsModel):
    """Where the teacher is. Everything left out is searched for (docs/reference-settings.md)."""

    path: str | None = Field(
        None, description="model folder, checkpoint_*.pth or exported zip; default: found under nnUNet_results"
    )
    fold: int | Literal["all"] | None = Field(None, description="the teacher's fold; default: the student's")
    checkpoint: str = Field("checkpoint_final.pth", description="which of the fold's checkpoints")
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="hash the checkpoint must have; saved with every run"
    )
    folds: list[int | Literal["all"]] | None = Field(
        None, min_length=1, description="several teachers: one per fold of the same model; instead of `fold`"
    )
    trusted: bool = Field(
        False, description="load a checkpoint that holds more than data, which is running the code that it names"
    )

    @model_validator(mode="after")
    def _fold_or_folds(self) -> TeacherSettings:
        if self.folds is not None and (self.fold is not None or self.sha256 is not None):
            raise ValueError("`folds` means several teachers and excludes `fold` and `sha256`, which are of one")
        return self

    def single(self) -> list[TeacherSettings]:
        """One entry per teacher: itself, or one per fold of ``folds``."""
        if self.folds is None:
            return [self]
        return [self.model_copy(update={"folds": None, "fold": fold}) for fold in self.folds]


_ObjectivesBase = create_model(  # type: ignore[call-overload]
    "ObjectivesSettings",
    __base__=SettingsModel,
    __doc__="Settings of the objectives in use, by name; an objective that is not named is not used.",
    **{name: (objective.Settings | None, None) for name, objective in OBJECTIVES.items()},
)


class Settings(SettingsModel):
    """Everything that can be set about a distillation run; ``None`` keeps nnU-Net's own value."""

    teacher: list[TeacherSettings] = Field(
        default=[TeacherSettings()],
        min_length=1,
        description="where the teacher is: one mapping (or a path alone), or a list of them for several",
    )
    feature_teacher: FeatureTeacher = Field(
        "first", description="of several teachers, whose features are distilled: the first's, or one's per iteration"
    )
    reduction: float = Field(4.0, ge=1, description="r: the student has 1/r of the teacher's channels")
    epochs: int | None = Field(None, ge=1, description="nnU-Net: 1000")
    iterations_per_epoch: int | None = Field(None, ge=1, description="nnU-Net: 250")
    validation_iterations: int | None = Field(None, ge=1, description="per epoch; nnU-Net: 50")
    learning_rate: float | None = Field(None, gt=0, description="initial; nnU-Net: 0.01, polynomial decay")
    seed: int | None = Field(None, ge=0, description="of weights, patches and augmentation; default: not seeded")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per iteration of an averaged student, which is then what is saved"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without a better validation (nnU-Net's EMA pseudo Dice)"
    )
    save_every: int | None = Field(
        None, ge=1, description="epochs between two writings of checkpoint_latest.pth; nnU-Net: 50"
    )
    max_skipped_steps: int = Field(
        20,
        ge=1,
        description="stop after so many skipped steps in a row, whose loss or gradient was not finite; the gradient scaler of "
        "mixed precision halves its scale of 2^16 at most 16 times before it reaches 1",
    )
    objectives: _ObjectivesBase = Field(default_factory=_ObjectivesBase, description="the objectives in use")

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = value if isinstance(value, list) else [value]
        return [{"path": one} if isinstance(one, str) else one for one in several]

    def teachers(self) -> list[TeacherSettings]:
        """One entry per teacher."""
        return [one for settings in self.teacher for one in settings.single()]

    def active_objectives(self) -> dict[str, ObjectiveSettings]:
        """The settings of the objectives in use, by name, in the order of the registry."""
        chosen = ((name, getattr(self.objectives, name)) for name in OBJECTIVES)
        return {name: settings for name, settings in chosen if settings is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, for YAML and checkpoints; objectives not in use are left out."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        plain["objectives"] = {name: value for name, value in plain["objectives"].items() if value is not None}
        plain["teacher"] = plain["teacher"][0] if len(plain["teacher"]) == 1 else plain["teacher"]
        return plain


def recipe_names() -> list[str]:
    """The shipped recipes (``plans/recipes/*.yaml``), without their ending."""
    return sorted(path.stem for path in (shipped_folder("plans") / "recipes").glob("*.yaml"))


def read_settings_file(name_or_path: str | Path) -> dict[str, Any]:
    """Read a YAML file, or a shipped recipe by its name.

    Raises:
        SettingsError: neither a file nor a recipe, or not a YAML mapping.
    """
    path = Path(name_or_path)
    if not path.is_file():
        recipe = shipped_folder("plans") / "recipes" / f"{name_or_path}.yaml"
        if not recipe.is_file():
            raise SettingsError(
                f"{str(name_or_path)!r} is neither a file nor a shipped recipe{_nearest(str(name_or_path), recipe_names())}. "
                f"Give the path of a YAML file, or one of the recipes: {', '.join(recipe_names())}."
            )
        path = recipe
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold `key: value` lines, but holds a {type(content).__name__}.")
    return content


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``["objectives.dcd.weight=0.1", ...]`` as nested dictionaries; values are read as YAML.

    Raises:
        SettingsError: an assignment without ``=``, or two that contradict each other.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set {assignment!r} must have the form key=value, for example epochs=300.")
        *parents, last = key.strip().split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise SettingsError(f"--set {assignment!r} goes below {parent!r}, which another --set gave a value.")
        place[last] = _yaml_value(value, assignment)
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
    """``over`` laid over ``base``, mapping by mapping; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if key == "teacher" and isinstance(value, str):
            value = {"path": value}
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def saved_settings(path: Path) -> dict[str, Any] | None:
    """The settings that a run wrote beside its checkpoints; ``None`` if there are none."""
    return read_settings_file(path) if path.is_file() else None


def resolve_settings(
    recipe: str,
    allowed_objectives: tuple[str, ...] | None,
    dataset_folder: Path | None = None,
    saved: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Gather and validate the settings of a run.

    Args:
        recipe: the trainer's own recipe.
        allowed_objectives: the objectives of the trainer; files may hold settings of others, for other trainers, which are
            left out here. ``None`` allows all.
        dataset_folder: the preprocessed dataset folder, which may hold ``nnunet_kd.yaml``.
        saved: the settings of the run that is continued; they hold, and only ``--set`` may change them.
        environment: default ``os.environ``.

    Raises:
        SettingsError: names every problem at once, with the source it comes from; or a file now says something else
            than the run that is continued.
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
        layer = _only_allowed(layer, allowed_objectives)
        if saved is not None:
            layer = _without_known_teacher(layer, start, source)
        merged = merge(merged, layer)
    if assignments:
        validate_settings(assignments, "--set")
        surplus = sorted(set(assignments.get("objectives") or {}) - set(allowed_objectives or ()))
        if allowed_objectives is not None and surplus:
            raise SettingsError(
                f"--set objectives.{surplus[0]}: this trainer uses {', '.join(allowed_objectives) or 'no objective'}; "
                f"take the trainer of that objective."
            )
    if saved is not None:
        _refuse_changes(start, merged, assignments)
    return validate_settings(merge(merged, assignments), "the settings together")


def _only_allowed(layer: dict[str, Any], allowed: tuple[str, ...] | None) -> dict[str, Any]:
    if allowed is None or not layer.get("objectives"):
        return layer
    return {**layer, "objectives": {name: value for name, value in layer["objectives"].items() if name in allowed}}


def _without_known_teacher(layer: dict[str, Any], saved: dict[str, Any], source: str) -> dict[str, Any]:
    """A continued run's settings say exactly which teachers it has; a file that means the same may say less."""
    meant, known = (validate_settings(values, source).teachers() for values in (layer, saved))
    same = len(meant) == len(known) and all(
        (one.path is None or str(Path(one.path).expanduser().resolve()) == other.path)
        and (one.fold is None or one.fold == other.fold)
        and (one.sha256 is None or one.sha256 == other.sha256)
        and one.checkpoint == other.checkpoint
        for one, other in zip(meant, known, strict=True)
    )
    return {key: value for key, value in layer.items() if key != "teacher"} if same or "teacher" not in layer else layer


def _refuse_changes(saved: dict[str, Any], now: dict[str, Any], assignments: dict[str, Any]) -> None:
    before, after = (
        _flatten(merge(validate_settings(values, "settings").as_dict(), assignments)) for values in (saved, now)
    )
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if changed:
        differences = "; ".join(f"{key}: was {before.get(key)}, now {after.get(key)}" for key in changed)
        raise SettingsError(
            f"the run to continue was started with other settings than the files give now ({differences}). "
            f"Restore the files, or say what you want with --set, for example --set {changed[0]}={before.get(changed[0])}."
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def validate_settings(values: Mapping[str, Any], source: str) -> Settings:
    """Validate, and turn everything pydantic finds into one message.

    Raises:
        SettingsError: lists every problem; an unknown key comes with the nearest known one.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()]
        raise SettingsError(f"{source}: {'; '.join(problems)}.") from error


def _describe(location: tuple[int | str, ...], kind: str, message: str) -> str:
    # places within the list of teachers and arms of unions are no keys that a user wrote
    keys = [key for key in location if isinstance(key, str) and key not in ("int", "literal['all']")]
    where = ".".join(keys)
    if kind == "extra_forbidden":
        known = _known_keys(keys[:-1])
        return f"unknown key {where!r}{_nearest(keys[-1], known)} ; known here: {', '.join(known)}"
    return f"{where or 'settings'}: {message.removeprefix('Value error, ')}"


def _known_keys(path: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for key in path:
        annotation = model.model_fields[key].annotation
        arms = [annotation, *getattr(annotation, "__args__", ())]
        model = next(arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel))
    return list(model.model_fields)


def _nearest(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
