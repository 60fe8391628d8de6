"""A trained nnU-Net as it lies on disk: folder, fold, checkpoint or exported zip; found, and read with readable errors."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.errors import (
    CheckpointError,
    MissingRequirement,
    ModelError,
    PlanError,
    SettingsError,
)
from nnunet_kd.models.archive import is_archive, unpack_model
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.models.plans import read_plans
from nnunet_kd.models.without_trainer import first_lines, load_without_trainer
from nnunet_kd.nnunet.checkpoints import (
    BEST,
    FINAL,
    INIT_ARGUMENTS,
    LATEST,
    TRAINER,
    WEIGHTS,
    trained_configuration,
)
from nnunet_kd.nnunet.environment import find_trainer

FURTHEST_FIRST = (FINAL, BEST, LATEST)

_NEEDED = (
    "A model folder holds plans.json, dataset.json and fold_X/checkpoint_final.pth, as nnUNetv2_train writes them."
)


@dataclass(frozen=True)
class ModelFolder:
    """Trained folds of one nnU-Net configuration.

    Attributes:
        folder: holds ``plans.json``, ``dataset.json`` and ``fold_X``.
        folds: the ``X``, numbers or ``all``; at least one.
        checkpoint: file name within every fold's folder.
        source: what it was opened from, the folder itself or an archive; ``None``: the folder.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    source: Path | None = None

    def checkpoint_path(self, fold: str) -> Path:
        """A fold's checkpoint file."""
        return self.folder / f"fold_{fold}" / self.checkpoint

    def plans(self) -> dict[str, Any]:
        """The plan.

        Raises:
            ModelError: it is missing or damaged.
        """
        try:
            return read_plans(self.folder / "plans.json")
        except PlanError as error:
            raise ModelError(f"the model {self.folder} cannot be used: {error}") from error

    def dataset_json(self) -> dict[str, Any]:
        """The dataset's description.

        Raises:
            ModelError: it is missing or damaged.
        """
        return read_json(self.folder / "dataset.json", "the model's dataset.json", _NEEDED)

    def read_checkpoint(self, fold: str) -> dict[str, Any]:
        """A fold's checkpoint in CPU memory.

        Raises:
            ModelError: the file is damaged or not nnU-Net's.
        """
        path = self.checkpoint_path(fold)
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            raise ModelError(str(error)) from error
        _check_entries(checkpoint, path)
        return checkpoint

    def cross_validation(self) -> Path | None:
        """Where nnU-Net's cross-validation of exactly these folds lies, whatever their order; ``None``: nowhere."""
        start = "crossval_results_folds_"
        found = sorted(self.folder.glob(f"{start}*"))
        return next((path for path in found if {*path.name.removeprefix(start).split("_")} == {*self.folds}), None)

    def configuration(self, trusted: bool = False) -> str:
        """The configuration that the first fold's checkpoint was trained with; the folder may have any name.

        Args:
            trusted: read the checkpoint even if it holds more than data (docs/explanation-security.md).

        Raises:
            ModelError: the file is damaged, not nnU-Net's, or holds more than data.
        """
        path = self.checkpoint_path(self.folds[0])
        checkpoint = _read_any(path, trusted)
        _check_entries(checkpoint, path)
        return trained_configuration(checkpoint)


def _check_entries(checkpoint: dict[str, Any], path: Path) -> None:
    missing = [key for key in (WEIGHTS, TRAINER, INIT_ARGUMENTS) if key not in checkpoint]
    if missing:
        raise ModelError(f"{path} is not a checkpoint of nnU-Net v2: it has no {', '.join(missing)}.")


def _read_any(path: Path, trusted: bool) -> dict[str, Any]:
    try:
        if not trusted:
            return read_checkpoint(path, in_memory=False)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    except Exception as error:  # whatever an unpickler makes of a file that was not written by torch.save
        raise ModelError(f"the checkpoint {path} cannot be read: {first_lines(error)}.") from error
    return checkpoint


def read_json(path: Path, what: str, advice: str) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        what: names it in errors.
        advice: the last sentence of errors.

    Raises:
        ModelError: missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{what} is missing: {path}. {advice}") from error
    except OSError as error:
        raise ModelError(f"{what}, {path}, cannot be read: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{what}, {path}, is not valid JSON: {error}. Correct it there, or restore the file."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{what}, {path}, holds no JSON object. {advice}")
    return content


@contextlib.contextmanager
def open_model(
    path: Path, folds: Sequence[str] = (), checkpoint: str | None = FINAL, configuration: str | None = None
) -> Iterator[ModelFolder]:
    """Find a trained model; a zip is unpacked for as long as the context lasts.

    Args:
        path: model folder, ``fold_X`` folder, checkpoint file, or an archive of ``nnUNetv2_export_model_to_zip`` or
            ``nnunet-kd export``.
        folds: numbers or ``all``; empty: every numbered fold that has the checkpoint, else ``fold_all``.
        checkpoint: its file name; ``None``: the first of :data:`FURTHEST_FIRST` that is there. A path to a checkpoint file
            counts more; where a user named one, :func:`refuse_other_checkpoint` comes first.
        configuration: of an archive with several models.

    Raises:
        ModelError: there is no such model, or the archive is damaged or not to be trusted; says what was found.
        SettingsError: the path is of one fold, and ``folds`` are others.
    """
    path = path.expanduser()
    if not path.exists():
        raise ModelError(f"the model {path} does not exist. {_NEEDED}")
    if is_archive(path):
        with tempfile.TemporaryDirectory(prefix="nnunet_kd_model_") as temporary:
            yield _choose(unpack_model(path, Path(temporary), configuration), folds, checkpoint, path)
        return
    if path.is_file():
        if path.suffix != ".pth" or not path.parent.name.startswith("fold_"):
            raise ModelError(f"{path} is neither a zip nor a checkpoint in the fold_X folder of a model. {_NEEDED}")
        folds, checkpoint, path = (_own_fold(path, path.parent, folds),), path.name, path.parent.parent
    elif path.name.startswith("fold_"):
        folds, path = (_own_fold(path, path, folds),), path.parent
    yield _choose(path, folds, checkpoint, path)


def refuse_other_checkpoint(path: Path, checkpoint: str, told: str) -> None:
    """Whether the checkpoint that a user named is the one of the path, where that is of a checkpoint.

    Args:
        path: as for :func:`open_model`.
        checkpoint: its file name.
        told: the option that named it, with its value.

    Raises:
        SettingsError: it is another.
    """
    if path.suffix == ".pth" and path.name != checkpoint:
        raise SettingsError(
            f"{told} stands for {checkpoint}, and {path} is another checkpoint. Leave {told} out, or give the model folder, "
            f"{path.expanduser().absolute().parent.parent}."
        )


def _own_fold(path: Path, folder: Path, wanted: Sequence[str]) -> str:
    own = folder.name.removeprefix("fold_")
    if set(wanted) - {own}:
        raise SettingsError(
            f"-f {' '.join(wanted)}: {path} is of fold {own} alone. Leave -f out, or give the model folder, {folder.parent}."
        )
    return own


def _choose(folder: Path, folds: Sequence[str], checkpoint: str | None, origin: Path) -> ModelFolder:
    for name in FURTHEST_FIRST if checkpoint is None else (checkpoint,):
        trained = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{name}"))
        chosen = folds or [fold for fold in trained if fold.isdigit()] or trained
        if chosen and set(chosen) <= set(trained):
            model = ModelFolder(folder, tuple(dict.fromkeys(chosen)), name, origin)
            model.plans()
            model.dataset_json()
            return model
    there = sorted(str(file.relative_to(folder)) for file in folder.glob("fold_*/checkpoint_*.pth"))
    wanted = ", ".join(f"fold_{fold}/{checkpoint or FINAL}" for fold in folds or ["X"])
    raise ModelError(f"{origin} has no {wanted}. Checkpoints found: {', '.join(there) or 'none'}. {_NEEDED}")


def new_predictor(mirroring: bool = False, device: str = "cpu") -> nnUNetPredictor:
    """nnU-Net's predictor with its own defaults, quiet."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a note about CUDA on every other device
        return nnUNetPredictor(
            use_mirroring=mirroring,
            perform_everything_on_device=device != "cpu",
            device=torch.device(device),
            verbose=False,
            verbose_preprocessing=False,
            allow_tqdm=False,
        )


def load_predictor(model: ModelFolder, predictor: nnUNetPredictor, trusted: bool = False) -> None:
    """Let one of nnU-Net's predictors build the network and read every fold, quietly.

    Args:
        model: what to load.
        predictor: nnU-Net's or one of ours; not initialised.
        trusted: load checkpoints even if they hold more than data (docs/explanation-security.md).

    A model whose trainer is not installed is loaded too, with a :class:`NnunetKdWarning`, if the network that its plan alone
    describes takes the weights.

    Raises:
        ModelError: a checkpoint is damaged, of another network, or holds more than data; or its trainer is not found and the
            plan alone does not build its network.
    """
    # nnU-Net unpickles whatever it is given; what has passed here names nothing but data
    checkpoints = [_read_any(model.checkpoint_path(fold), trusted) for fold in model.folds]
    for fold, checkpoint in zip(model.folds, checkpoints, strict=True):
        _check_entries(checkpoint, model.checkpoint_path(fold))
    try:
        find_trainer(str(checkpoints[0][TRAINER]))
    except MissingRequirement as error:
        load_without_trainer(model, predictor, checkpoints, error)
        return
    except (ImportError, AttributeError, AssertionError, SyntaxError) as error:
        raise ModelError(
            f"the model {model.folder} cannot be loaded: its trainer {checkpoints[0][TRAINER]} cannot be imported: "
            f"{type(error).__name__}: {first_lines(error)}."
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            predictor.initialize_from_trained_model_folder(str(model.folder), model.folds, model.checkpoint)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, KeyError, AttributeError, ImportError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else first_lines(error)
        raise ModelError(
            f"the model {model.folder} (folds {', '.join(model.folds)}, {model.checkpoint}) cannot be loaded: "
            f"{type(error).__name__}: {reason}. The weights must be of the network that {checkpoints[0][TRAINER]} builds from "
            f"the plans.json and dataset.json in that folder."
        ) from error
