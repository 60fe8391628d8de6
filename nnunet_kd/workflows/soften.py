"""Soft labels of a fold's training cases: what its teachers say of them, once, on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.distillation.frozen_teacher import shared_axes
from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.soft_labels.description import Description, data_of
from nnunet_kd.distillation.soft_labels.images import ImageRecord, content_of, write_record
from nnunet_kd.distillation.soft_labels.maps import bytes_needed, check_space, is_whole, map_path, write_map
from nnunet_kd.distillation.soft_labels.student import foreground_heads, sets_folder
from nnunet_kd.distillation.teacher_source import TeacherSource
from nnunet_kd.errors import MissingRequirement
from nnunet_kd.models.folder import load_predictor, new_predictor
from nnunet_kd.nnunet.datasets import case_shape
from nnunet_kd.nnunet.prediction import DEFAULT_STEP, network_input
from nnunet_kd.system.files import check_output, remove_leftovers
from nnunet_kd.system.memory import available_bytes, freed_memory_kept
from nnunet_kd.training.gradient_shares import in_temporary_results
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.training.unlabelled import unlabelled_cases, unlabelled_folder, write_decision
from nnunet_kd.workflows.soften_cases import cases_to_soften, preprocessed_images
from nnunet_kd.workflows.soften_set import (
    check_folds,
    check_leaks,
    check_out_of_fold,
    describe_teacher,
    find_soft_teacher,
    write_description,
)
from nnunet_kd.workflows.unlabelled_images import add_images
from nnunet_kd.workflows.unlabelled_sources import preprocessing_of, refuse_other_preprocessing

Progress = Callable[[int, int, str], object]
"""Told how many cases are done, of how many, and which is next."""


@dataclass(frozen=True)
class SoftenOptions:
    """How the teachers are run.

    Attributes:
        folds: the teacher's; empty: the student's own fold.
        mirroring: average over the axes that every teacher's training mirrored. Default: no; it gained 0.06 Dice
            (``benchmarks/results/hippocampus-soft``), and takes up to eight times as many passes.
        out_of_fold: every case by the teacher that was not trained on it.
        part, parts: this process does every ``parts``-th case, from ``part`` on; for several GPUs or computers.
        trained_on: the teachers' training cases by fold; ``None``: as the split of their dataset says, if it can be read.
        allow_leak: also by teachers that were trained on cases that the student's fold validates on.
        for_live_too: whether the student might as well be trained with a live teacher, which an error may then advise.
    """

    folds: tuple[int | str, ...] = ()
    mirroring: bool = False
    out_of_fold: bool = False
    part: int = 0
    parts: int = 1
    trained_on: Mapping[str, Sequence[str]] | None = None
    allow_leak: bool = False
    for_live_too: bool = True


@dataclass(frozen=True)
class Softened:
    """What :func:`soften` did.

    Attributes:
        folder: of the maps.
        description: of the set.
        written, kept: cases.
        size: bytes of all maps in the folder.
        unseen: cases that no teacher may speak on (``out_of_fold``), left out.
    """

    folder: Path
    description: Description
    written: list[str]
    kept: list[str]
    size: int
    unseen: list[str] = field(default_factory=list)


def soften(
    make: Callable[[], DistillationTrainer],
    wanted: TeacherSettings,
    choices: SoftenOptions,
    device: torch.device,
    progress: Progress,
    images: Path | None = None,
) -> Softened:
    """Predict every training case of a fold with nnU-Net's own predictor, and store the probabilities.

    Safe to stop and to run again: a map is there whole or not at all, and one that fits is kept.

    Args:
        make: builds the student's trainer; its output folder is a temporary one.
        wanted: the teacher; its ``fold`` is not used.
        choices: see :class:`SoftenOptions`.
        device: of the teachers.
        progress: see :data:`Progress`.
        images: folder of images without labels, which are preprocessed first and train along from then on.

    Raises:
        TeacherError: a teacher is missing or does not fit the preprocessed data, is of another fold than ``folds`` says, or
            was trained on cases that the student validates on; or ``out_of_fold`` lacks what it needs.
        SettingsError: ``out_of_fold`` for a student of one fold; a fold that is named twice.
        MissingRequirement: memory or disk will not do; said before the first case.
        DataError: a preprocessed case cannot be read, the fold has no training cases, or cases without labels were preprocessed
            as another plan says.
    """
    with in_temporary_results(make) as trainer, contextlib.ExitStack() as opened:
        teachers = _load_teachers(trainer, wanted, choices, device, opened)
        description = teachers.description
        if choices.out_of_fold:
            check_out_of_fold(description, trainer.fold)
        elif not choices.allow_leak:
            check_leaks(description, trainer)
        if images is not None:
            add_images(trainer, images, progress)
        training, validation = ([str(case) for case in part] for part in trainer.do_split())
        without_labels = frozenset(unlabelled_cases(trainer, [*training, *validation]))
        if without_labels:
            refuse_other_preprocessing(
                unlabelled_folder(trainer),
                without_labels,
                preprocessing_of(trainer.plans_manager.plans, trainer.configuration_name),
            )
        folder = sets_folder(Path(trainer.preprocessed_dataset_folder)) / description.name
        for written in (unlabelled_folder(trainer), unlabelled_folder(trainer).resolve().parent):
            remove_leftovers(written)  # nnU-Net reads no folder of cases that holds other files
        cases, dataset = cases_to_soften(trainer, teachers.first, training, without_labels)
        channels = len(description.heads)
        shapes = {case: (channels, *case_shape(dataset, case)[1:]) for case in cases}
        unseen = [case for case in cases if not description.teachers_of(case)]
        images_of = preprocessed_images(trainer, without_labels)
        kept = [case for case in cases if is_whole(folder, case, shapes[case]) and images_of(case).is_that_of(folder)]
        done = {*kept, *unseen}
        todo = [case for case in cases[choices.part :: choices.parts] if case not in done]
        if todo:
            to_make = {case: shapes[case] for case in todo}
            _check_memory(trainer, to_make, live_helps=choices.for_live_too and not without_labels)
            check_output(folder, "the folder of soft labels")
        check_space(folder, bytes_needed([shapes[case] for case in todo]))
        write_description(folder, description)

        def load(case: str) -> tuple[torch.Tensor, ImageRecord]:
            status = images_of(case).status()
            image = network_input(trainer, dataset, case)
            channels = case_shape(dataset, case)[0]  # a cascade's input has the previous stage's labels behind them
            return image, ImageRecord(*status, content_of(image[:channels].numpy()))

        def write(case: str, logits: torch.Tensor, record: ImageRecord) -> None:
            _write_case(trainer, folder, case, logits, record, case in without_labels)

        with freed_memory_kept(device.type == "cpu"):
            _predict_cases(teachers, todo, load, write, progress)
        size = sum(path.stat().st_size for path in folder.glob("*.b2nd"))
        return Softened(folder, description, todo, kept, size, unseen)


@dataclass(frozen=True)
class _Teachers:
    """Loaded one after the other into one predictor, with the weights of each."""

    predictor: nnUNetPredictor
    parameters: list[Any]
    description: Description
    first: TeacherSource


def _load_teachers(
    trainer: DistillationTrainer,
    wanted: TeacherSettings,
    choices: SoftenOptions,
    device: torch.device,
    opened: contextlib.ExitStack,
) -> _Teachers:
    """Every teacher's weights, and the description of the set that they make; archives stay unpacked as long as ``opened``."""
    sources = [find_soft_teacher(trainer, wanted, fold, opened) for fold in choices.folds or (trainer.fold,)]
    check_folds(choices.folds, [source for source, _ in sources])
    predictor = new_predictor(choices.mirroring, device.type)
    predictor.device = device
    parameters: list[Any] = []
    described, axes = [], []
    for source, pinned in sources:
        load_predictor(source.model, predictor, pinned.trusted)
        parameters += predictor.list_of_parameters
        axes.append(tuple(predictor.allowed_mirroring_axes or ()))
        described.append(describe_teacher(trainer, source, pinned, choices.trained_on))
    mirrored = shared_axes(axes)
    predictor.allowed_mirroring_axes = mirrored or None
    description = Description(
        teachers=described,
        out_of_fold=choices.out_of_fold,
        mirror_axes=list(mirrored) if choices.mirroring else [],
        trained_mirror_axes=list(mirrored),
        step_size=DEFAULT_STEP,
        heads=foreground_heads(trainer.label_manager),
        has_regions=trainer.label_manager.has_regions,
        data=data_of(trainer.plans_manager.plans, trainer.configuration_name),
    )
    return _Teachers(predictor, parameters, description, sources[0][0])


def _predict_cases(
    teachers: _Teachers,
    cases: Sequence[str],
    load: Callable[[str], tuple[torch.Tensor, ImageRecord]],
    write: Callable[[str, torch.Tensor, ImageRecord], None],
    progress: Progress,
) -> None:
    """One case after the other; the next one is read and the last one written meanwhile."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        upcoming: Future[tuple[torch.Tensor, ImageRecord]] | None = reader.submit(load, cases[0]) if cases else None
        behind: Future[None] | None = None
        for place, case in enumerate(cases):
            progress(place, len(cases), case)
            assert upcoming is not None
            image, record = upcoming.result()
            upcoming = reader.submit(load, cases[place + 1]) if place + 1 < len(cases) else None
            own = teachers.description.teachers_of(case)
            teachers.predictor.list_of_parameters = [teachers.parameters[one] for one in own]
            logits = teachers.predictor.predict_logits_from_preprocessed_data(image).cpu()
            if behind is not None:
                behind.result()
            behind = writer.submit(write, case, logits, record)
        if behind is not None:
            behind.result()
    progress(len(cases), len(cases), "")


def _write_case(
    trainer: DistillationTrainer,
    folder: Path,
    case: str,
    logits: torch.Tensor,
    record: ImageRecord,
    without_labels: bool,
) -> None:
    """A case's map into ``folder``, last: its presence says that all is done."""
    map_path(folder, case).unlink(missing_ok=True)  # of another image, or not whole
    manager = trainer.label_manager
    probabilities = manager.apply_inference_nonlin(logits.float()).numpy()
    if without_labels:
        decision = manager.convert_probabilities_to_segmentation(probabilities)
        write_decision(trainer, case, np.asarray(decision))
    write_record(folder, case, record)
    write_map(folder, case, _foreground(probabilities, manager), trainer.configuration_manager.patch_size)


def _check_memory(trainer: DistillationTrainer, shapes: dict[str, tuple[int, ...]], live_helps: bool) -> None:
    """Of the largest case, in bytes by voxel and class.

    While it is written: its logits (2), the same in float32 (4), its probabilities (4). Of the case before, what the allocator
    may still keep: the rounded map (1), compressed (1) and as a file's content (1). Beside them the next case's logits (2) and,
    of several teachers, those that are added (2).
    """
    largest = max(shapes, key=lambda case: int(np.prod(shapes[case][1:])))
    voxels = int(np.prod(shapes[largest][1:]))
    needed = voxels * trainer.label_manager.num_segmentation_heads * (2 + 4 + 4 + 1 + 1 + 1 + 2 + 2)
    available = available_bytes()
    if available is not None and needed > available:
        raise MissingRequirement(
            f"case {largest} ({' x '.join(map(str, shapes[largest][1:]))} voxels, {trainer.label_manager.num_segmentation_heads} "
            f"classes) takes about {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB are free. Use a computer "
            f"with more, or {'train with objectives.soft.source=live' if live_helps else 'leave this image out'}."
        )


def _foreground(probabilities: np.ndarray, manager: Any) -> np.ndarray:
    """What is stored: regions, or all classes but the background."""
    return probabilities if manager.has_regions else probabilities[1:]
