"""What a trained model left on disk about itself: fold, teacher, settings, curves.

Everything here is optional for a comparison: a folder of predictions is enough, and whatever is there is told.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from nnunet_kd.distillation.settings_sources import SETTINGS_FILE
from nnunet_kd.distillation.soft_labels.description import FILE as DESCRIPTION_FILE
from nnunet_kd.distillation.soft_labels.description import Description, read_description
from nnunet_kd.errors import DataError, ModelError, SettingsError
from nnunet_kd.evaluation.costs.networks import read_network
from nnunet_kd.models.checkpoint import CLIPPED, ENTRY, mean_share, read_checkpoint
from nnunet_kd.models.folder import open_model
from nnunet_kd.nnunet.checkpoints import LOGGING, MIRROR_AXES
from nnunet_kd.nnunet.environment import optional_folder
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.system.files import sha256, why_no_folder

Split = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Run:
    """One trained fold.

    Attributes:
        model_folder: holds ``plans.json`` and ``fold_X``.
        fold: ``X``, a number or ``all``.
        dataset_name: from the plan.
        checkpoint: its file; ``None`` if only predictions were kept.
        checkpoint_sha256: hash of that file.
        parameters: number of learned values, if there is a checkpoint whose network can be built here.
        settings: what the distillation trainer resolved (``distillation_settings.yaml``); ``None`` for stock nnU-Net.
        curves: values per epoch, by name, from the checkpoint; NaN in epochs without one.
        mirror_axes: spatial axes, from 0, that training and prediction mirror; ``None`` without a checkpoint.
        clipped: share of the steps whose gradient nnU-Net clipped, between 0 and 1; NaN where it was not recorded.
    """

    model_folder: Path
    fold: str
    dataset_name: str
    checkpoint: Path | None = None
    checkpoint_sha256: str | None = None
    parameters: int | None = None
    settings: Mapping[str, Any] | None = None
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    mirror_axes: tuple[int, ...] | None = None
    clipped: float = float("nan")

    @property
    def teachers(self) -> tuple[Mapping[str, Any], ...]:
        """The settings' ``teacher``, a mapping (path, fold, sha256) or a list of them; none if it names nothing."""
        given = (self.settings or {}).get("teacher") or []
        listed = given if isinstance(given, list) else [given]
        entries = [{"path": entry} if isinstance(entry, str) else entry for entry in listed]
        return tuple(entry for entry in entries if entry.get("path") or entry.get("sha256") or knows_fold(entry))

    @property
    def _soft(self) -> Mapping[str, Any]:
        objectives = (self.settings or {}).get("objectives") or {}
        return objectives.get("soft") or {}

    @property
    def reads_maps(self) -> bool:
        """Whether it learned from stored soft labels."""
        return bool(self._soft.get("maps_sha256")) and self._soft.get("alpha") != 0

    @property
    def allows_leak(self) -> bool:
        """Whether teachers of its soft labels may have been trained on its validation cases."""
        return self.reads_maps and bool(self._soft.get("allow_leak"))

    def soft_labels(self) -> Description | None:
        """The soft labels that it learned from; ``None``: from none, or they are not where they were."""
        if not self.reads_maps:
            return None
        folder = Path(str(self._soft.get("maps")))
        with contextlib.suppress(DataError, OSError):
            if sha256(folder / DESCRIPTION_FILE) == self._soft["maps_sha256"]:
                return read_description(folder)
        return None


@dataclass(frozen=True)
class Method:
    """A name, its predictions, and the run behind them if it is known."""

    name: str
    predictions: Path
    run: Run | None = None


def method_name(text: str) -> str:
    """The name in ``name=DIR``.

    Raises:
        SettingsError: not of this form.
    """
    name, _, folder = text.partition("=")
    if not name.strip() or not folder:
        raise SettingsError(f"{text!r} must have the form name=FOLDER, for example student=predictions/student.")
    return name


def parse_method(text: str, fold: str | None = None) -> Method:
    """``name=DIR``: DIR is a folder of predictions, or a model folder, of which ``fold_X/validation`` is taken.

    Predictions that lie in a model folder (``MODEL/fold_X/...``) bring their run along.

    Args:
        text: as on the command line.
        fold: of a model folder; default: its only fold with validation predictions.

    Raises:
        SettingsError: not of this form.
        DataError: nothing is there.
    """
    name = method_name(text)
    folder = Path(text.removeprefix(f"{name}=")).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{name}: the folder {folder} {why_no_folder(folder)}. Give a folder of predictions or a model folder."
        )
    if (folder / "plans.json").is_file() and any(folder.glob("fold_*")):
        folds = sorted(path.parent.name for path in folder.glob("fold_*/validation") if path.is_dir())
        wanted = [f"fold_{fold}"] if fold is not None else folds
        if len(wanted) != 1 or wanted[0] not in folds:
            raise DataError(
                f"{name}: {folder} has validation predictions of {', '.join(folds) or 'no fold'}; one fold is needed. "
                f"Choose with -f, or run `nnUNetv2_train DATASET CONFIGURATION FOLD --val`."
            )
        return Method(name, folder / wanted[0] / "validation", read_run(folder, wanted[0].removeprefix("fold_")))
    for parent in folder.resolve().parents:
        if parent.name.startswith("fold_") and (parent.parent / "plans.json").is_file():
            return Method(name, folder, read_run(parent.parent, parent.name.removeprefix("fold_")))
    return Method(name, folder)


def attach_runs(methods: Sequence[Method], texts: Sequence[str], fold: str | None = None) -> list[Method]:
    """Methods with the runs of ``name=MODEL``, for predictions that do not lie in their model folder.

    Args:
        methods: as parsed.
        texts: as on the command line.
        fold: of the model folders; default: their first trained one.

    Raises:
        SettingsError: a name that is not among the methods.
        ModelError: no trained fold.
    """
    runs: dict[str, Run] = {}
    for text in texts:
        name, _, folder_text = text.partition("=")
        if name not in {method.name for method in methods} or not folder_text:
            raise SettingsError(
                f"--model {text!r} must be NAME=MODEL with one of {', '.join(m.name for m in methods)}."
            )
        folder = Path(folder_text).expanduser()
        try:
            with open_model(folder, () if fold is None else (fold,), checkpoint=None) as model:
                runs[name] = read_run(folder, model.folds[0])
        except ModelError as error:
            raise ModelError(f"--model {name}: {error}") from error
    return [replace(method, run=runs.get(method.name, method.run)) for method in methods]


def read_run(model_folder: Path, fold: str) -> Run:
    """Read what a trained fold left behind.

    Raises:
        DataError: a file is there but cannot be read.
        CheckpointError: the checkpoint is damaged.
    """
    dataset_name = str(_read(model_folder / "plans.json").get("dataset_name", "unknown"))
    settings_path = model_folder / f"fold_{fold}" / SETTINGS_FILE
    settings = _read(settings_path) if settings_path.is_file() else None
    try:
        with open_model(model_folder, (fold,), checkpoint=None) as model:
            checkpoint = model.checkpoint_path(fold)
    except ModelError:  # predictions are enough
        return Run(model_folder, fold, dataset_name, settings=settings)
    content = read_checkpoint(checkpoint, in_memory=False)
    parameters = None
    # a trainer that is not installed may have built another network than the plan says
    with contextlib.suppress(ModelError):
        parameters = read_network(checkpoint).parameters
    return Run(
        model_folder,
        fold,
        dataset_name,
        checkpoint,
        sha256(checkpoint),
        parameters,
        settings,
        _curves(content),
        tuple(content.get(MIRROR_AXES) or ()),
        mean_share(_clipped(content)),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold keys and values, but holds a {type(content).__name__}.")
    return content


def _curves(checkpoint: Mapping[str, Any]) -> dict[str, list[float]]:
    """nnU-Net's own losses and Dice, and every mean loss term of a distillation."""
    logging = checkpoint.get(LOGGING) or {}
    names = {"train_losses": "training loss", "val_losses": "validation loss", "ema_fg_dice": "pseudo Dice (averaged)"}
    curves = {title: [float(value) for value in logging[key]] for key, title in names.items() if logging.get(key)}
    if clipped := _clipped(checkpoint):
        curves["share of clipped steps"] = clipped
    epochs = (checkpoint.get(ENTRY) or {}).get("history") or []
    terms = dict.fromkeys(name for epoch in epochs for name in epoch if "/" not in name)
    return curves | {f"{term} loss": [float(epoch.get(term, "nan")) for epoch in epochs] for term in terms}


def _clipped(checkpoint: Mapping[str, Any]) -> list[float]:
    """Per epoch, the share of steps whose gradient was clipped; empty where it was not recorded."""
    return [float(share) for share in (checkpoint.get(ENTRY) or {}).get(CLIPPED) or []]


def nnunet_folder(variable: str, dataset_name: str) -> Path | None:
    """The dataset's folder below ``nnUNet_raw`` or ``nnUNet_preprocessed``, if there is one."""
    base = optional_folder(variable)
    folder = None if base is None else base / dataset_name
    return folder if folder is not None and folder.is_dir() else None


def read_splits(path: Path) -> list[Split]:
    """nnU-Net's ``splits_final.json``.

    Raises:
        DataError: missing, or not a list of ``train`` and ``val``.
    """
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        if not all({"train", "val"} <= set(split) for split in splits):
            raise ValueError("a fold lacks train or val")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is no splits_final.json of nnU-Net: {error}. Correct it, or give another with --splits."
        ) from error
    return list(splits)


def check_fold(dataset_folder: Path, fold: str) -> None:
    """Whether a preprocessed dataset has a fold; nnU-Net makes its own five where there are no splits yet.

    Raises:
        SettingsError: the splits have no such fold.
        DataError: they cannot be read.
    """
    splits = dataset_folder / SPLITS_FILE
    if splits.is_file():
        fold_cases(read_splits(splits), fold, "val")


def fold_cases(splits: Sequence[Split], fold: str, part: str) -> set[str]:
    """The ``train`` or ``val`` cases of a fold; ``all`` trains on every case and validates on the same.

    Raises:
        SettingsError: the splits have no such fold.
    """
    if fold == "all":
        return {case for split in splits for case in (*split["train"], *split["val"])}
    if not fold.isdigit() or int(fold) >= len(splits):
        raise SettingsError(f"there is no fold {fold!r}: the splits have folds 0 to {len(splits) - 1}, and `all`.")
    return set(splits[int(fold)][part])


def knows_fold(teacher: Mapping[str, Any]) -> bool:
    """Whether a teacher of the settings names its fold."""
    return teacher.get("fold") is not None  # fold 0 is one
