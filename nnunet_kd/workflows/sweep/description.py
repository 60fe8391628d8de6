"""What a sweep trains: one validated model, from a YAML file, the command line, or both."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from nnunet_kd.distillation.settings_model import SettingsModel
from nnunet_kd.distillation.settings_sources import merge, parse_assignments, read_settings_file
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.environment import method_trainer
from nnunet_kd.nnunet.folds import Fold, parse_fold, parse_folds

DESCRIPTION_FILE = "sweep.yaml"
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Variant(SettingsModel):
    """One row of the comparison: a method, with settings of its own."""

    method: str = Field(description="as in `nnunet-kd train -m`")
    recipe: str | None = Field(None, description="a shipped recipe's name or a YAML file; default: the sweep's")
    settings: dict[str, Any] = Field(default_factory=dict, description="any settings, laid over the sweep's")

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        try:
            method_trainer(value)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("settings")
    @classmethod
    def _without_seed(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "seed" in value:
            raise ValueError("`seed` does not belong here: a sweep's seeds are its `seeds` (--seeds 0,1)")
        return value


class SweepDescription(SettingsModel):
    """Everything that describes a sweep; defaults are those of ``nnunet-kd train``."""

    dataset: str = Field(description="dataset number or name")
    configuration: str = Field(description="2d, 3d_fullres, ...")
    name: str = Field(description="of the sweep's folder; default: the file's name, else the configuration's")
    methods: list[str] = Field(default_factory=list, description="each a variant without settings of its own")
    variants: dict[str, Variant] = Field(default_factory=dict, description="further rows, by name")
    folds: list[Fold] = Field(default=[0], min_length=1, description="nnU-Net's folds")
    seeds: list[int] = Field(default=[0], min_length=1, description="one training per seed")
    plans: str = Field("nnUNetPlans", description="the teacher's plan, or a student's")
    teacher: str | None = Field(None, description="model folder or exported zip; default: found under nnUNet_results")
    pretrained_weights: str | None = Field(
        None,
        description="checkpoint, or model folder with one per fold, that students start from; default: random weights",
    )
    recipe: str | None = Field(None, description="a shipped recipe's name or a YAML file, for all variants")
    settings: dict[str, Any] = Field(default_factory=dict, description="any settings, for all variants")
    save_probabilities: bool = Field(
        False,
        description="keep what validation predicts as probabilities, too, so that `compare` shows their calibration",
    )
    device: Literal["cuda", "cpu", "mps"] = Field("cuda", description="to train on")
    slurm: dict[str, Any] | None = Field(None, description="parameters of submitit; default: train here")

    _without_seed = field_validator("settings")(Variant._without_seed.__func__)  # type: ignore[attr-defined]

    @field_validator("folds", mode="before")
    @classmethod
    def _folds_as_in_commands(cls, value: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value
        try:
            return [parse_fold(fold) if isinstance(fold, str) else fold for fold in value]
        except SettingsError as error:
            raise ValueError(str(error)) from error

    @field_validator("folds", "seeds", "methods")
    @classmethod
    def _once_each(cls, value: list[Any]) -> list[Any]:
        if len(set(value)) != len(value):
            raise ValueError(f"something is there twice: {', '.join(map(str, value))}")
        if any(isinstance(number, int) and number < 0 for number in value):
            raise ValueError(f"there are no negative ones: {', '.join(map(str, value))}")
        return value

    @model_validator(mode="after")
    def _names(self) -> SweepDescription:
        if twice := sorted(set(self.methods) & set(self.variants)):
            raise ValueError(f"{twice[0]!r} is both a method and a variant; give the variant another name")
        rows = self.rows()
        if not rows:
            raise ValueError("there is nothing to train: name `methods` (--methods student,dcd) or `variants`")
        for name in (self.name, *rows):
            if not _FOLDER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is to name a folder: letters, digits and . _ + - only")
        if len({name.lower() for name in rows}) != len(rows):
            raise ValueError(
                "two variants differ in upper and lower case only, which some file systems do not tell apart"
            )
        return self

    def rows(self) -> dict[str, Variant]:
        """Methods and variants by name, in the order given."""
        return {method: Variant(method=method) for method in self.methods} | dict(self.variants)

    def as_yaml(self) -> bytes:
        """Usable as a sweep's file again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False).encode()


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """``'dcd-S: objectives.dcd.bands=S'`` as a name and the values of a :class:`Variant`.

    Assignments are separated by spaces, quoted as in a shell. ``method=`` and ``recipe=`` are the variant's own; without
    ``method=``, the name up to its first ``-`` is the method.

    Raises:
        SettingsError: not of this form.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    try:
        parts = shlex.split(rest)
    except ValueError as error:
        raise SettingsError(f"--variant {text!r}: {error}.") from error
    if not colon or not name:
        raise SettingsError(
            f"--variant {text!r} must have the form 'NAME: key=value ...', for example 'dcd-S: objectives.dcd.bands=S'."
        )
    settings = parse_assignments(parts)
    own: dict[str, Any] = {key: settings.pop(key) for key in ("method", "recipe") if key in settings}
    return name, {"method": name.split("-")[0], **own, "settings": settings}


def parse_seeds(text: str) -> list[int]:
    """``"0,1"`` as numbers.

    Raises:
        SettingsError: something else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or any(not part.isdecimal() for part in parts):
        raise SettingsError(f"--seeds {text!r} must be numbers with commas between them, for example 0,1,2.")
    return [int(part) for part in parts]


def parse_arguments(described: str, given: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """A command line as :func:`describe_sweep` takes it: the YAML file, if there is one, and fields.

    Args:
        described: a dataset's number or name, or a YAML file.
        given: fields of :class:`SweepDescription` as their options say them: methods and seeds with commas between them;
            variants, folds, settings and SLURM's parameters in lists. ``None``, ``False`` and an empty list: not given.

    Raises:
        SettingsError: one of them is not of its form.
    """
    parsers: dict[str, Callable[[Any], Any]] = {
        "methods": lambda text: [part.strip() for part in text.split(",") if part.strip()],
        "variants": lambda texts: dict(parse_variant(text) for text in texts),
        "folds": parse_folds,
        "seeds": parse_seeds,
        "settings": parse_assignments,
        "slurm": parse_assignments,
    }
    file = Path(described) if described.endswith((".yaml", ".yml")) else None
    fields = {
        name: parsers[name](value) if name in parsers else value
        for name, value in given.items()
        if value not in (None, False, [])
    }
    return file, fields if file is not None else {"dataset": described, **fields}


def describe_sweep(file: Path | None, given: Mapping[str, Any]) -> SweepDescription:
    """Validate a file with what the command line lays over it.

    Args:
        file: the YAML file, if there is one.
        given: fields of :class:`SweepDescription`; ``settings`` and ``variants`` are merged with the file's, the others
            replace them. ``methods`` without ``variants`` is a choice of rows: methods, and variants that the file describes.

    Raises:
        SettingsError: lists every problem.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = _read_file(file)
        values.setdefault("name", file.stem)
    given = dict(given)
    if "methods" in given and "variants" not in given:
        described = values.pop("variants", None)
        described = described if isinstance(described, Mapping) else {}
        given["variants"] = {name: described[name] for name in given["methods"] if name in described}
        given["methods"] = [name for name in given["methods"] if name not in described]
    settings = merge(values.get("settings") or {}, given.get("settings") or {})
    variants = {**(values.get("variants") or {}), **(given.get("variants") or {})}
    values = {**values, **given, "settings": settings, "variants": variants}
    values.setdefault("name", values.get("configuration", "sweep"))
    try:
        return SweepDescription.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(entry["loc"], entry["type"], entry["msg"]) for entry in error.errors())
        raise SettingsError(f"{file if file is not None else 'the sweep'}: {problems}.") from error


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SettingsError(
            f"there is no file {file}. Give a YAML file that describes a sweep (dataset, configuration, methods, ...; sweep.yaml "
            f"in a sweep's folder is one), or a dataset and a configuration."
        )
    values = read_settings_file(file)
    if isinstance(values.get("dataset"), int):
        values["dataset"] = _as_written(file, "dataset") or str(values["dataset"])
    return values


def _as_written(file: Path, key: str) -> str | None:
    """A top-level value as it stands in a YAML file, for numbers: to YAML, 010 is 8."""
    node = yaml.compose(file.read_text(encoding="utf-8"))
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return next((str(value.value) for name, value in entries if name.value == key), None)


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in location) or "sweep"
    if kind == "extra_forbidden":
        model: type[SettingsModel] = Variant if location[0] == "variants" else SweepDescription
        return f"unknown key {where!r}; known here: {', '.join(model.model_fields)}"
    if kind == "missing":
        return f"{where} is missing"
    return f"{where}: {message.removeprefix('Value error, ').rstrip('.')}"
