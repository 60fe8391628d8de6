"""The teacher: found, checked against the student, frozen.

Everything that can be wrong with a teacher is found here, before training starts.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.data_comparison import Difference, Verdict, compare_data
from nnunet_kd.distillation.data_description import DataDescription
from nnunet_kd.distillation.features import encoder_channels, has_encoder, plain_module
from nnunet_kd.distillation.frozen_teacher import FrozenTeacher, Teachers
from nnunet_kd.distillation.settings import Settings, TeacherSettings
from nnunet_kd.distillation.teacher_source import HOW_TO_POINT, TeacherSource, locate_teacher
from nnunet_kd.errors import ModelError, NnunetKdWarning, TeacherError
from nnunet_kd.models.folder import load_predictor, new_predictor
from nnunet_kd.models.plans import provenance, stage_channels
from nnunet_kd.system.files import sha256


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher that fits the student.

    Attributes:
        source: where it lies.
        settings: that say exactly which it is.
        warnings: in what it differs from the student, where that may matter.
        other_stages: how its stages differ from the student's, so that it teaches by its logits alone; empty: not at all.
    """

    source: TeacherSource
    settings: TeacherSettings
    warnings: tuple[str, ...]
    other_stages: str = ""


@contextlib.contextmanager
def found_teacher(
    wanted: TeacherSettings,
    results_folder: Path | None,
    student_plans: Mapping[str, Any],
    configuration: str,
    fold: int | str,
    dataset_json: Mapping[str, Any],
    stages: bool = True,
) -> Iterator[FoundTeacher]:
    """The teacher of a student's fold, which fits the student.

    An exported zip is unpacked for as long as the context lasts.

    Args:
        wanted, results_folder, student_plans, configuration, fold: see
            :func:`~nnunet_kd.distillation.teacher_source.locate_teacher`.
        dataset_json: the student's.
        stages: see :func:`check_teacher`.

    Raises:
        TeacherError: see there, :func:`check_teacher` and :func:`pin_teacher`.
    """
    with tempfile.TemporaryDirectory(prefix="nnunet_kd_teacher_") as unpacked:
        source = locate_teacher(wanted, results_folder, student_plans, configuration, fold, Path(unpacked))
        told, other_stages = check_teacher(source, student_plans, configuration, dataset_json, stages)
        yield FoundTeacher(source, pin_teacher(source, wanted), told, other_stages)


def check_teacher(
    source: TeacherSource,
    student_plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    stages: bool = True,
) -> tuple[tuple[str, ...], str]:
    """Compare what decides which numbers teacher and student see, and what their heads mean.

    :mod:`nnunet_kd.distillation.data_comparison` says what counts.

    Args:
        source: the teacher.
        student_plans, configuration, dataset_json: the student's.
        stages: whether features are compared, stage by stage.

    Returns:
        Differences that may matter, one sentence each; and how stages differ, where that does not matter (empty: not at all).

    Raises:
        TeacherError: names everything that differs and must not.
    """
    plans, teacher_dataset = source.plans(), source.dataset_json()
    if source.configuration not in plans["configurations"]:
        raise TeacherError(
            f"the checkpoint {source} is of the configuration {source.configuration}, but the plans.json in its folder has "
            f"{', '.join(plans['configurations'])}. Put the plans.json of that training there."
        )
    if provenance(plans, source.configuration) is not None:
        raise TeacherError(
            f"{source.model_folder} holds a student of this package, which cannot be a teacher. {HOW_TO_POINT}"
        )
    teacher = DataDescription(plans, source.configuration, teacher_dataset)
    found = compare_data(teacher, DataDescription(student_plans, configuration, dataset_json))
    other_stages = [] if stages else [difference for difference in found if difference.aspect.of_stages]
    found = [difference for difference in found if difference not in other_stages]
    refused = [difference for difference in found if difference.verdict is Verdict.REFUSED]
    if refused:
        raise TeacherError(
            f"the teacher {source} (trained on {plans['dataset_name']}) does not fit the student's "
            f"{student_plans['dataset_name']}, {configuration}. What differs: {'; '.join(map(str, refused))}. {_way_out(refused)}"
        )
    told = tuple(f"teacher and student differ in {difference}. {difference.aspect.why}" for difference in found)
    return told, "; ".join(map(str, other_stages))


def _way_out(refused: Sequence[Difference]) -> str:
    if all(difference.aspect.of_stages for difference in refused):
        return (
            "Its features cannot be compared with the student's, but its logits can: -m logits or -m figkd. Or take a teacher of "
            "the same plan."
        )
    keys = {difference.key for difference in refused}
    if keys <= {"channel_names", "labels"}:
        return (
            "If they mean the same, write the same names in the same order into both dataset.json. Otherwise take a teacher of "
            "the same channels and labels."
        )
    return (
        "Teacher and student must see the same data in the same way: take a teacher trained with the same dataset and plan, or "
        "give the student's dataset the teacher's plan (nnUNetv2_move_plans_between_datasets, then nnUNetv2_preprocess)."
    )


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
            is not found and the plan alone does not build its network.
    """
    predictor = new_predictor()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NnunetKdWarning)
            load_predictor(source.model, predictor, trusted)
    except ModelError as error:
        raise TeacherError(f"the teacher cannot be loaded: {error}") from error
    plans = source.plans()
    network = plain_module(predictor.network)
    channels: tuple[int, ...] = ()
    if has_encoder(network):  # whose trainer may build another than the plan's
        channels = encoder_channels(network) or stage_channels(plans, source.configuration)
    mirror_axes = tuple(predictor.allowed_mirroring_axes or ())
    told = tuple(str(one.message) for one in caught if issubclass(one.category, NnunetKdWarning))
    return FrozenTeacher(network, channels, device, compile_backend, mirror_axes, plans["plans_name"], told)


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
        found = found_teacher(
            wanted, results_folder, student_plans, configuration, fold, dataset_json, settings.compares_stages()
        )
        with found as teacher:
            source, exact = teacher.source, teacher.settings
            members.append(load_teacher(source, device, compile_backend, wanted.trusted))
        pinned.append(exact)
        log(f"Teacher: {source} (SHA-256 {exact.sha256})")
        for told in (*members[-1].warnings, *teacher.warnings):
            log(f"WARNING: {told}")
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


@contextlib.contextmanager
def naming_random_start(possible: bool) -> Iterator[None]:
    """Within, a TeacherError says how to train without a teacher, where it is needed for the start alone.

    Args:
        possible: whether that is so, and the trainer also begins at random.
    """
    try:
        yield
    except TeacherError as error:
        if not possible:
            raise
        raise TeacherError(
            f"{error} This training needs its teacher for the start alone: --set start=random begins without it."
        ) from error
