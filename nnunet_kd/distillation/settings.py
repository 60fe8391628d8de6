"""Everything that can be set about a run, as one validated model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_origin

from pydantic import BaseModel, Field, ValidationError, create_model, field_validator, model_validator

from nnunet_kd.distillation.frozen_teacher import FeatureTeacher
from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.objectives.base import ObjectiveSettings
from nnunet_kd.distillation.settings_model import SettingsModel, did_you_mean
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.checkpoints import FINAL


class TeacherSettings(SettingsModel):
    """Where the teacher is. Everything left out is searched for."""

    path: str | None = Field(
        None,
        description="model folder, `checkpoint_*.pth` or exported zip; default: found under `nnUNet_results`. `teacher: PATH` is "
        "short for it",
    )
    fold: int | Literal["all"] | None = Field(
        None,
        description="the teacher's fold; default: the student's. Another fold's teacher has seen the validation cases, which "
        "is warned about",
    )
    checkpoint: str = Field(FINAL, description="file name in the fold's folder")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 that the checkpoint must have; every run saves its teacher's",
    )
    folds: list[int | Literal["all"]] | None = Field(
        None,
        min_length=1,
        description="several teachers, one per fold of the same model, for example `[0, 1, 2, 3, 4]`; instead of `fold`",
    )
    trusted: bool = Field(
        False,
        description="load a checkpoint that holds more than data, which is running the code that it names "
        "(docs/explanation-security.md)",
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
    """Everything that can be set about a run. A key that is left out has its default, or keeps nnU-Net's own value."""

    teacher: list[TeacherSettings] = Field(
        default=[TeacherSettings()],
        min_length=1,
        description="where the teacher is: one mapping (or a path alone), or a list of them for several. Objectives on logits "
        "use the mean probability of all",
    )
    feature_teacher: FeatureTeacher = Field(
        "first",
        description="of several teachers, whose features are distilled: those of the first one, or of one "
        "after the other, a new one in every iteration that reads features",
    )
    reduction: float = Field(4.0, ge=1, description="r: channels of every stage are divided by it and rounded down")
    start: str = Field(
        "random",
        min_length=1,
        description="first weights of a new training. `random`; `teacher`: computed from the first teacher's "
        "(docs/explanation-inheritance.md), as the recipes of most trainers with a teacher say; else the path of a student, "
        "trained or not: model folder, `checkpoint_*.pth` or exported zip",
    )
    start_sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 that the checkpoint of a student in `start` must have; every run saves it",
    )
    inheritance: InheritanceSettings = Field(
        default=InheritanceSettings(), description="how `start: teacher` computes weights from the teacher's"
    )
    epochs: int | None = Field(None, ge=1, description="nnU-Net: 1000")
    iterations_per_epoch: int | None = Field(None, ge=1, description="nnU-Net: 250")
    validation_iterations: int | None = Field(None, ge=1, description="per epoch; nnU-Net: 50")
    learning_rate: float | None = Field(None, gt=0, description="initial; nnU-Net: 0.01, polynomial decay")
    mirror_axes: list[Literal[0, 1, 2]] | None = Field(
        None,
        description="spatial axes, from 0, that training and prediction mirror; `[]`: none. Default: those of the teacher's "
        "training (of several, those they share), without a teacher nnU-Net's. A teacher of `nnUNetTrainerNoMirroring` may know "
        "left from right, and is wrong on mirrored images. Give a student to compare with the same axes: `nnunet-kd sweep` "
        "does, `nnunet-kd doctor` says which they are",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="of weights, patches and augmentation; default: not seeded. For identical batches also set "
        "`nnUNet_n_proc_DA=0` (docs/how-to-resume-and-scale.md)",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per iteration of an averaged student; the average is what is validated and saved. In iteration n "
        "(from 0) at most (1 + n) / (10 + n), so that the first iterations soon count little",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without a better validation (nnU-Net's EMA pseudo Dice)"
    )
    save_every: int | None = Field(
        None, ge=1, description="epochs between two writings of `checkpoint_latest.pth`; nnU-Net: 50"
    )
    max_skipped_steps: int = Field(
        20,
        ge=1,
        description="stop after so many skipped steps in a row, whose loss or gradient was not finite; the gradient scaler of "
        "mixed precision halves its scale of 2^16 at most 16 times before it reaches 1",
    )
    objectives: _ObjectivesBase = Field(
        default_factory=_ObjectivesBase,
        description="the objectives in use, by name; naming one uses it. A trainer takes its own; `nnUNetTrainerKD` takes "
        "any mix: `--recipe dcd --set objectives.logits.weight=1`",
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = value if isinstance(value, list) else [value]
        return [{"path": one} if isinstance(one, str) else one for one in several]

    @field_validator("mirror_axes")
    @classmethod
    def _sorted_once(cls, value: list[Any] | None) -> list[Any] | None:
        return None if value is None else sorted(set(value))

    def teachers(self) -> list[TeacherSettings]:
        """One entry per teacher."""
        return [one for settings in self.teacher for one in settings.single()]

    def active_objectives(self) -> dict[str, ObjectiveSettings]:
        """The settings of the objectives in use, by name, in the order of the registry."""
        chosen = ((name, getattr(self.objectives, name)) for name in OBJECTIVES)
        return {name: settings for name, settings in chosen if settings is not None}

    def runs_teacher(self) -> bool:
        """Whether any objective in use needs a teacher's network in training."""
        return any(objective.runs_teacher for objective in self.active_objectives().values())

    def compares_stages(self) -> bool:
        """Whether any objective in use needs the teacher's features, stage by stage."""
        return any(objective.compares_stages for objective in self.active_objectives().values())

    def check_axes(self, configuration: str, dimensions: int) -> None:
        """Raise a SettingsError for mirrored axes that a configuration of so many spatial dimensions does not have."""
        if any(axis >= dimensions for axis in self.mirror_axes or ()):
            raise SettingsError(f"mirror_axes: {configuration} has the spatial axes 0 to {dimensions - 1}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, for YAML and checkpoints; objectives not in use are left out."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        plain["objectives"] = {name: value for name, value in plain["objectives"].items() if value is not None}
        plain["teacher"] = plain["teacher"][0] if len(plain["teacher"]) == 1 else plain["teacher"]
        return plain


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
        return f"unknown key {where!r}{did_you_mean(keys[-1], known)} ; known here: {', '.join(known)}"
    return f"{where or 'settings'}: {message.removeprefix('Value error, ')}"


def _known_keys(path: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for key in path:
        annotation = model.model_fields[key].annotation
        arms = [annotation, *getattr(annotation, "__args__", ())]
        # before Python 3.11, list[...] is an instance of type, too
        classes = (arm for arm in arms if isinstance(arm, type) and get_origin(arm) is None)
        model = next(arm for arm in classes if issubclass(arm, BaseModel))
    return list(model.model_fields)
