"""Starting from a student on disk, trained or not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.distillation.starts.finite import not_finite
from nnunet_kd.distillation.starts.pretrained import shape_of
from nnunet_kd.errors import CheckpointError, ModelError, SettingsError
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.models.folder import FURTHEST_FIRST, ModelFolder, open_model
from nnunet_kd.nnunet.checkpoints import WEIGHTS
from nnunet_kd.nnunet.folds import split_model_path
from nnunet_kd.system.counts import some
from nnunet_kd.system.files import sha256

RANDOM, TEACHER = "random", "teacher"
"""The values of the setting ``start`` that are no path."""


def random_start_refused(trainer: str) -> str:
    """Of a trainer that needs a start, in words: why its settings do not hold, and what to do."""
    return (
        f"{trainer} starts inside its teacher, but its settings say start: random. Leave that out, set start=teacher, or take "
        f"the method student: nnUNetTrainerStudent, which starts from random weights."
    )


def pin_start(start: str, fold: int | str) -> tuple[str, str]:
    """A path to a student, made absolute, and the SHA-256 of its checkpoint.

    Args:
        start: model folder, ``fold_X`` folder, checkpoint file or exported zip.
        fold: of the training; of a model with several folds its own is taken.

    Raises:
        SettingsError: there is no such student, or its weights are not finite.
    """
    _, digest, _ = _read_student(start, fold)
    return str(Path(start).expanduser().resolve()), digest


def start_from_student(
    network: nn.Module, start: str, fold: int | str, wanted_sha256: str | None
) -> tuple[str, str, str]:
    """Load every layer of a student from disk, heads included.

    Args:
        network: that receives the weights.
        start, fold: see :func:`pin_start`.
        wanted_sha256: that the checkpoint must have.

    Returns:
        As :func:`pin_start`, and the fold that the student was made for.

    Raises:
        SettingsError: it is not there, not the one meant, another network, or its weights are not finite.
    """
    weights, digest, own_fold = _read_student(start, fold)
    if wanted_sha256 is not None and digest != wanted_sha256:
        raise SettingsError(
            f"start: the student {start} has SHA-256 {digest}, but start_sha256 asks for {wanted_sha256}: it is another "
            f"checkpoint than the one meant. Give the right one, or leave start_sha256 out."
        )
    own = plain_module(network).state_dict()
    differing = [
        f"{name}: {shape_of(weights.get(name))} there, {shape_of(own.get(name))} here"
        for name in sorted({*own, *weights})
        if shape_of(weights.get(name)) != shape_of(own.get(name))
    ]
    if differing:
        raise SettingsError(
            f"start: the student {start} is another network than the one to train. What differs: "
            f"{some(differing, 4, '; ')}. It must have the same plan, input channels and labels."
        )
    plain_module(network).load_state_dict(weights)
    return str(Path(start).expanduser().resolve()), digest, own_fold


def _read_student(start: str, fold: int | str) -> tuple[dict[str, torch.Tensor], str, str]:
    path = Path(start).expanduser()
    try:
        with open_model(path, checkpoint=None) as model:
            checkpoint = _of_fold(model, path, str(fold))
            weights = read_checkpoint(checkpoint)[WEIGHTS]
            if broken := not_finite(weights.items()):
                raise CheckpointError(
                    f"{path} holds weights that are not finite ({broken}): its training diverged, so nothing can start from it."
                )
            return weights, sha256(checkpoint), checkpoint.parent.name.removeprefix("fold_")
    except (ModelError, CheckpointError) as error:
        raise SettingsError(f"start: {error} Give {RANDOM}, {TEACHER}, or the path of a student.") from error


def _of_fold(model: ModelFolder, path: Path, fold: str) -> Path:
    """The checkpoint of a path that names one, else the training's own fold's, else that of the only fold there is."""
    if split_model_path(path)[1] is not None:
        return model.checkpoint_path(model.folds[0])
    there = sorted({file.parent.name for file in model.folder.glob("fold_*/checkpoint_*.pth")})
    wanted = there[0] if len(there) == 1 else f"fold_{fold}"
    for name in FURTHEST_FIRST:
        if (found := model.folder / wanted / name).is_file():
            return found
    raise ModelError(
        f"{path} has {', '.join(there)}, but no checkpoint of fold {fold}; name one of its fold_X folders."
    )
