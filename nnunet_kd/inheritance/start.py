"""The weights that a training starts from: random ones, a student's from disk, or computed from the teacher's."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from nnunet_kd.checkpoint import read_checkpoint
from nnunet_kd.distributed import gather, is_distributed
from nnunet_kd.errors import CheckpointError, ModelError, NnunetKdError, PlanError, SettingsError
from nnunet_kd.features import plain_module
from nnunet_kd.files import sha256
from nnunet_kd.frozen_teacher import FrozenTeacher
from nnunet_kd.inheritance.fit import inherit
from nnunet_kd.inheritance.layers import LayerFit, Progress
from nnunet_kd.inheritance.options import InheritanceSettings
from nnunet_kd.inheritance.patches import patch_count, training_patches
from nnunet_kd.model_folder import open_model
from nnunet_kd.plans import stage_channels

RANDOM, TEACHER = "random", "teacher"
"""The values of the setting ``start`` that are no path."""


def fingerprint(network: nn.Module) -> str:
    """Hash of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in plain_module(network).state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def explained_with_plans(
    teacher: FrozenTeacher, student_plans: Mapping[str, Any], configuration: str
) -> Iterator[None]:
    """Within, a PlanError (of :func:`~.steps.pair`) becomes one that names both plans and what to set."""
    try:
        yield
    except PlanError as error:
        own = stage_channels(student_plans, configuration)
        raise PlanError(
            f"a student of the plan {student_plans['plans_name']} (channels {', '.join(map(str, own))}) cannot start inside a "
            f"teacher of the plan {teacher.plans_name} (channels {', '.join(map(str, teacher.channels))}): {error}. Set "
            f"start=random (--set start=random), or take a teacher that differs from the student in its channels only."
        ) from error


def start_from_teacher(
    trainer: Any, teacher: nn.Module, settings: InheritanceSettings, seed: int, progress: Progress | None
) -> list[LayerFit]:
    """Compute a trainer's weights from its teacher's, in the first process; the others receive them.

    Args:
        trainer: nnU-Net's, initialised, its loaders not started.
        teacher: plain network on the trainer's device.
        settings, seed: see :func:`~nnunet_kd.inheritance.fit.inherit`.
        progress: default: a line in the trainer's log every ten seconds.

    Returns:
        How well each layer was fitted; in other processes than the first an empty list.

    Raises:
        NnunetKdError: in every process what stopped the first one.
    """
    network = plain_module(trainer.network)
    fits: list[LayerFit] = []
    problem: NnunetKdError | None = None
    if trainer.local_rank == 0:
        try:
            count = patch_count(settings.voxels, trainer.configuration_manager.patch_size)
            patches = training_patches(trainer, count, settings.augmented, seed)
            progress = progress or _logged(trainer.print_to_log_file)
            regions = trainer.label_manager.has_regions
            fits = inherit(teacher, network, patches, settings, seed, regions, progress)
        except NnunetKdError as error:
            problem = error
    problem = gather(problem)[0]
    if problem is not None:
        raise problem
    if is_distributed():
        for value in network.state_dict().values():
            dist.broadcast(value, src=0)
    return fits


def _logged(log: Callable[[str], Any]) -> Progress:
    last = time.monotonic()

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 10:
            last = time.monotonic()
            log(f"Start from the teacher: {done} of {total} parts, {what}")

    return tell


# a student on disk ----------------------------------------------------------------------------------------------------


def pin_start(start: str, fold: int | str) -> tuple[str, str]:
    """A path to a student, made absolute, and the SHA-256 of its checkpoint.

    Args:
        start: model folder, ``fold_X`` folder, checkpoint file or exported zip.
        fold: of the training; of a model with several folds its own is taken.

    Raises:
        SettingsError: there is no such student.
    """
    weights = _read_student(start, fold)
    return str(Path(start).expanduser().resolve()), weights[1]


def start_from_student(network: nn.Module, start: str, fold: int | str, wanted_sha256: str | None) -> tuple[str, str]:
    """Load every layer of a student from disk, heads included.

    Args:
        network: that receives the weights.
        start, fold: see :func:`pin_start`.
        wanted_sha256: that the checkpoint must have.

    Returns:
        As :func:`pin_start`.

    Raises:
        SettingsError: it is not there, not the one meant, or another network.
    """
    weights, digest = _read_student(start, fold)
    if wanted_sha256 is not None and digest != wanted_sha256:
        raise SettingsError(
            f"start: the student {start} has SHA-256 {digest}, but start_sha256 asks for {wanted_sha256}: it is another "
            f"checkpoint than the one meant. Give the right one, or leave start_sha256 out."
        )
    own = plain_module(network).state_dict()
    differing = [
        f"{name}: {_shape(weights.get(name))} there, {_shape(own.get(name))} here"
        for name in sorted({*own, *weights})
        if _shape(weights.get(name)) != _shape(own.get(name))
    ]
    if differing:
        more = f", and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise SettingsError(
            f"start: the student {start} is another network than the one to train. What differs: "
            f"{'; '.join(differing[:4])}{more}. It must have the same plan, input channels and labels."
        )
    plain_module(network).load_state_dict(weights)
    return str(Path(start).expanduser().resolve()), digest


def _shape(value: torch.Tensor | None) -> str:
    return "missing" if value is None else "x".join(map(str, value.shape)) or "a number"


def _read_student(start: str, fold: int | str) -> tuple[dict[str, torch.Tensor], str]:
    path = Path(start).expanduser()
    try:
        with open_model(path, checkpoint=None) as model:
            folds = model.folds if len(model.folds) == 1 else (str(fold),)
            if folds[0] not in model.folds:
                raise ModelError(
                    f"{path} has the folds {', '.join(model.folds)}, but not {fold}; name one of its fold_X folders."
                )
            checkpoint = model.checkpoint_path(folds[0])
            return read_checkpoint(checkpoint)["network_weights"], sha256(checkpoint)
    except (ModelError, CheckpointError) as error:
        raise SettingsError(f"start: {error} Give {RANDOM}, {TEACHER}, or the path of a student.") from error
