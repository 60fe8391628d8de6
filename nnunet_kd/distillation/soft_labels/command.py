"""The ``nnunet-kd soften`` that makes a set of soft labels, or more of one that is there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.soft_labels.description import Description
from nnunet_kd.distillation.soft_labels.teachers import StudentTeachers, place_of
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.nnunet.folds import split_model_path

DEFAULT_PLANS, DEFAULT_DEVICE = "nnUNetPlans", "cuda"


@dataclass(frozen=True)
class SoftenCommand:
    """Its arguments; as text, what a user types.

    Attributes:
        dataset, configuration, fold, plans, device: the student's.
        teacher: path; ``None``: the one that is found without.
        folds: the teacher's; empty: the student's own.
        mirroring, out_of_fold: see :class:`~.description.Description`.
        allow_leak: teachers may have been trained on the student's validation cases.
        trusted: their checkpoints may hold more than data.
    """

    dataset: str
    configuration: str
    fold: int | str
    plans: str = DEFAULT_PLANS
    device: str = DEFAULT_DEVICE
    teacher: str | None = None
    folds: tuple[int | str, ...] = ()
    mirroring: bool = False
    out_of_fold: bool = False
    allow_leak: bool = False
    trusted: bool = False

    def __str__(self) -> str:
        parts = ["nnunet-kd", "soften", self.dataset, self.configuration, str(self.fold)]
        parts += ["-p", self.plans] if self.plans != DEFAULT_PLANS else []
        parts += ["-t", self.teacher] if self.teacher is not None else []
        parts += ["--out-of-fold"] if self.out_of_fold else []
        parts += ["--mirroring"] if self.mirroring else []
        parts += ["--allow-leak"] if self.allow_leak else []
        parts += ["--trusted"] if self.trusted else []
        parts += ["-device", self.device] if self.device != DEFAULT_DEVICE else []
        parts += ["-f", *map(str, self.folds)] if self.folds not in ((), (self.fold,)) else []
        return shlex.join(parts)

    def of_own_fold(self) -> SoftenCommand:
        """By the teacher of the student's fold: of the same model, whichever of its folds or checkpoints was named."""
        model = None if self.teacher is None else str(split_model_path(Path(self.teacher))[0])
        return replace(self, teacher=model, folds=())

    def of_set(self, description: Description, teachers: StudentTeachers) -> SoftenCommand:
        """What makes the maps of a set that is there, with its teachers and choices.

        Args:
            description: of the set.
            teachers: of the student, which know what is found without ``-t``.
        """
        first, several = description.teachers[0], len(description.teachers) > 1
        place = place_of(first, teachers.results, teachers.dataset)
        teacher: str | None = str(place) if place is not None else f"PATH_OF_{first.model}"
        if place is not None and place == teachers.plain_model() and first.checkpoint == FINAL:
            teacher = None
        elif place is not None and place.is_dir() and first.checkpoint != FINAL and not several:
            teacher = str(place / f"fold_{first.fold}" / first.checkpoint)
        return replace(
            self,
            teacher=teacher,
            folds=tuple(one.fold for one in description.teachers),
            mirroring=bool(description.mirror_axes),
            out_of_fold=description.out_of_fold,
        )

    def of_settings(self, wanted: Sequence[TeacherSettings], teachers: StudentTeachers) -> SoftenCommand:
        """What makes maps of the teachers that a run's settings name.

        A student of all cases takes the teacher of all cases, or, without one, each case's maps from a fold that was not
        trained on it.
        """
        first = wanted[0]
        folds = tuple(one.fold for one in wanted if one.fold is not None and one.path == first.path)
        path = None if first.path is None else str(Path(first.path).expanduser())
        if first.checkpoint != FINAL and len(wanted) == 1 and (source := teachers.locate(first)) is not None:
            path = str(source.origin or source.checkpoint_path)
        chosen = replace(self, teacher=path, folds=folds, trusted=first.trusted)
        if self.fold != "all" or folds or teachers.locate(first) is not None:
            return chosen
        there = teachers.trained_folds(first)
        return replace(chosen, folds=there, out_of_fold=len(there) > 1)
