"""The preprocessed cases that soft labels are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nnunet_kd.distillation.soft_labels.images import PreprocessedImage
from nnunet_kd.distillation.teacher_source import TeacherSource, previous_stage_segmentations
from nnunet_kd.errors import DataError
from nnunet_kd.nnunet.datasets import JoinedDataset, preprocessed_cases
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.training.unlabelled import unlabelled_folder


def cases_to_soften(
    trainer: DistillationTrainer, teacher: TeacherSource, training: Sequence[str], without_labels: Collection[str]
) -> tuple[list[str], Any]:
    """The fold's training cases with those that have no labels, and a dataset of them; a cascade's input lies beside the teacher.

    Raises:
        DataError: there is none.
        TeacherError: the first stage's segmentations do not lie beside the teacher.
    """
    if trainer.is_cascaded:
        previous = str(trainer.configuration_manager.previous_stage_name)
        found = previous_stage_segmentations(teacher, previous, trainer.configuration_name)
        trainer.folder_with_segs_from_previous_stage = str(found)
    dataset = trainer.dataset_class(
        trainer.preprocessed_dataset_folder,
        list(training),
        folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
    )
    more = sorted(without_labels)
    if not training and not more:
        raise DataError(
            f"fold {trainer.fold} of {trainer.plans_manager.dataset_name} has no training cases, so there is nothing to make "
            f"soft labels of. Look at splits_final.json in {Path(trainer.preprocessed_dataset_folder).parent}, or add images "
            f"with --images FOLDER."
        )
    if more:
        own = [dataset] if training else []
        dataset = JoinedDataset([*own, preprocessed_cases(unlabelled_folder(trainer), more)])
    return sorted([*training, *more]), dataset


def preprocessed_images(
    trainer: DistillationTrainer, without_labels: frozenset[str]
) -> Callable[[str], PreprocessedImage]:
    """By case, its preprocessed image, with labels or without."""

    @cache
    def dataset(apart: bool) -> Any:
        return preprocessed_cases(
            unlabelled_folder(trainer) if apart else Path(trainer.preprocessed_dataset_folder), []
        )

    return lambda case: PreprocessedImage(dataset(case in without_labels), case)
