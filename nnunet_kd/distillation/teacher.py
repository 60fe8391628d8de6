"""The teacher: found, checked against the student, frozen.

Everything that can be wrong with a teacher is found here, before training starts.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.distillation.frozen_teacher import FrozenTeacher, Teachers
from nnunet_kd.distillation.settings import Settings, TeacherSettings
from nnunet_kd.distillation.teacher_source import HOW_TO_POINT, TeacherSource, locate_teacher
from nnunet_kd.errors import ModelError, TeacherError
from nnunet_kd.models.folder import load_predictor, new_predictor
from nnunet_kd.models.plans import inputs_and_heads, provenance, stage_channels
from nnunet_kd.system.files import sha256


@contextlib.contextmanager
def found_teacher(
    wanted: TeacherSettings,
    results_folder: Path | None,
    student_plans: Mapping[str, Any],
    configuration: str,
    fold: int | str,
    dataset_json: Mapping[str, Any],
) -> Iterator[tuple[TeacherSource, TeacherSettings]]:
    """The teacher of a student's fold, which fits the student, and settings that say exactly which it is.

    An exported zip is unpacked for as long as the context lasts.

    Args:
        wanted, results_folder, student_plans, configuration, fold: see
            :func:`~nnunet_kd.distillation.teacher_source.locate_teacher`.
        dataset_json: the student's.

    Raises:
        TeacherError: see there, :func:`check_teacher` and :func:`pin_teacher`.
    """
    with tempfile.TemporaryDirectory(prefix="nnunet_kd_teacher_") as unpacked:
        source = locate_teacher(wanted, results_folder, student_plans, configuration, fold, Path(unpacked))
        check_teacher(source, student_plans, configuration, dataset_json)
        yield source, pin_teacher(source, wanted)


def check_teacher(
    source: TeacherSource, student_plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> None:
    """Compare what teacher and student expect of their data and how their encoders shrink it.

    Raises:
        TeacherError: names everything that differs.
    """
    plans, teacher_dataset = source.plans(), source.dataset_json()
    if source.configuration not in plans["configurations"]:
        raise TeacherError(f"the plan in {source.model_folder} has no configuration {source.configuration!r}.")
    if provenance(plans, source.configuration) is not None:
        raise TeacherError(f"{source.model_folder} holds a student, which cannot be a teacher. {HOW_TO_POINT}")
    comparisons: list[tuple[str, Callable[[Mapping[str, Any], str, Mapping[str, Any]], Any]]] = [
        ("input channels", lambda p, c, d: inputs_and_heads(p, c, d)[0]),
        ("labels", lambda p, c, d: list(d["labels"].items())),
        ("regions_class_order", lambda p, c, d: d.get("regions_class_order")),
        ("patch size", lambda p, c, d: _configuration(p, c).patch_size),
        ("strides per stage", lambda p, c, d: _configuration(p, c).pool_op_kernel_sizes),
        ("spacing", lambda p, c, d: _configuration(p, c).spacing),
        ("axis order (transpose_forward)", lambda p, c, d: p["transpose_forward"]),
        ("normalization", lambda p, c, d: _configuration(p, c).normalization_schemes),
    ]
    differences = []
    for what, read in comparisons:
        teacher, student = (
            read(plans, source.configuration, teacher_dataset),
            read(student_plans, configuration, dataset_json),
        )
        if json.dumps(teacher) != json.dumps(student):
            differences.append(f"{what}: teacher {teacher}, student {student}")
    if differences:
        raise TeacherError(
            f"the teacher {source} (trained on {plans['dataset_name']}) does not fit the student's "
            f"{student_plans['dataset_name']}, {configuration}. What differs: {'; '.join(differences)}. "
            f"Teacher and student must see the same data in the same way: take a teacher trained with the same dataset and plan."
        )


def _configuration(plans: Mapping[str, Any], configuration: str) -> Any:
    return PlansManager(dict(plans)).get_configuration(configuration)


def pin_teacher(source: TeacherSource, wanted: TeacherSettings) -> TeacherSettings:
    """Settings that say exactly which checkpoint ``source`` is.

    Raises:
        TeacherError: it has not the hash that is wanted.
    """
    digest = sha256(source.checkpoint_path)
    if wanted.sha256 is not None and digest != wanted.sha256:
        raise TeacherError(
            f"the teacher {source} has SHA-256 {digest}, but the settings ask for {wanted.sha256}: it is another checkpoint "
            f"than the one meant. Give the right one, or leave `teacher.sha256` out of the settings."
        )
    return TeacherSettings(
        path=str((source.origin or source.model_folder).resolve()),
        fold="all" if source.fold == "all" else int(source.fold),
        checkpoint=source.checkpoint,
        sha256=digest,
        trusted=wanted.trusted,
    )


def load_teacher(
    source: TeacherSource, device: torch.device, compile_backend: str | None = None, trusted: bool = False
) -> FrozenTeacher:
    """Build and freeze the teacher, with strictly matching weights.

    Args:
        source: from :func:`~nnunet_kd.distillation.teacher_source.locate_teacher`.
        device: the student's.
        compile_backend: of ``torch.compile``, which nnU-Net uses for the student; ``None``: not compiled.
        trusted: load the checkpoint even if it holds more than data (docs/explanation-security.md).

    Raises:
        TeacherError: the checkpoint is damaged, incomplete or of another network, holds more than data, or its trainer class
            is not found.
    """
    predictor = new_predictor()
    try:
        load_predictor(source.model, predictor, trusted)
    except ModelError as error:
        raise TeacherError(
            f"the teacher {source} cannot be loaded: {error} For a damaged one, copy it again or take another one; if it "
            f"is whole and you know who made it, `--set teacher.trusted=true` loads whatever it holds. {HOW_TO_POINT}"
        ) from error
    plans = source.plans()
    channels = stage_channels(plans, source.configuration)
    mirror_axes = tuple(predictor.allowed_mirroring_axes or ())
    return FrozenTeacher(
        plain_module(predictor.network), channels, device, compile_backend, mirror_axes, plans_name=plans["plans_name"]
    )


def load_teachers(
    settings: Settings,
    results_folder: Path | None,
    student_plans: Mapping[str, Any],
    configuration: str,
    fold: int | str,
    dataset_json: Mapping[str, Any],
    device: torch.device,
    compile_backend: str | None,
    log: Callable[[str], Any],
) -> tuple[Teachers, Settings]:
    """Find, check and load every teacher that the settings name.

    Args:
        settings: the run's.
        results_folder, student_plans, configuration, fold, dataset_json: see :func:`found_teacher`.
        device, compile_backend: see :func:`load_teacher`.
        log: told which teachers these are, and what a reader of the log must know of them.

    Returns:
        The teachers, and the settings with their teachers said exactly.

    Raises:
        TeacherError: see :func:`found_teacher` and :func:`load_teacher`.
    """
    members, pinned = [], []
    for wanted in settings.teachers():
        found = found_teacher(wanted, results_folder, student_plans, configuration, fold, dataset_json)
        with found as (source, exact):
            members.append(load_teacher(source, device, compile_backend, wanted.trusted))
        pinned.append(exact)
        log(f"Teacher: {source} (SHA-256 {exact.sha256})")
        if wanted.trusted:
            log("WARNING: teacher.trusted is set: whatever this checkpoint holds was loaded as code.")
        if str(fold) != source.fold:
            log(
                f"WARNING: this teacher is of fold {source.fold}, the student of fold {fold}: the teacher has seen the student's "
                f"validation cases in training, so validation results will look better than they are."
            )
    has_regions = PlansManager(dict(student_plans)).get_label_manager(dict(dataset_json)).has_regions
    teachers = Teachers(members, settings.feature_teacher, has_regions)
    return teachers, settings.model_copy(update={"teacher": pinned})
