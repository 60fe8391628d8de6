"""Whether the checkpoints that maps were made by are those that lie there now, and those that a run uses."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunet_kd.distillation.settings import Settings, TeacherSettings
from nnunet_kd.distillation.soft_labels.description import Description, SoftTeacher
from nnunet_kd.distillation.starts.student import TEACHER
from nnunet_kd.distillation.teacher_source import TeacherSource, locate_teacher
from nnunet_kd.errors import ModelError, TeacherError
from nnunet_kd.models.archive import is_archive, unpack_model
from nnunet_kd.models.plans import provenance
from nnunet_kd.nnunet.environment import STOCK_TRAINER
from nnunet_kd.system.files import sha256


@dataclass(frozen=True)
class RunTeacher:
    """A checkpoint that a run uses: its fold, its SHA-256, and how a user knows it."""

    fold: str
    sha256: str
    where: str


@dataclass(frozen=True)
class StudentTeachers:
    """Where a student's teachers are.

    Attributes:
        results: ``nnUNet_results``; ``None``: not set.
        plans, configuration, fold: the student's.
    """

    results: Path | None
    plans: Mapping[str, Any]
    configuration: str
    fold: int | str

    @property
    def dataset(self) -> str:
        """The student's."""
        return str(self.plans["dataset_name"])

    def plain_model(self) -> Path | None:
        """The model folder that is taken before all others, if no teacher is named; it need not exist."""
        marked = provenance(self.plans, self.configuration)
        if self.results is None or marked is None:
            return None
        name = f"{STOCK_TRAINER}__{marked['teacher_plans_name']}__{self.configuration}"
        return (self.results / self.dataset / name).absolute()

    def locate(self, wanted: TeacherSettings) -> TeacherSource | None:
        """The teacher that settings mean; ``None``: there is none. What is unpacked of a zip is gone again."""
        with tempfile.TemporaryDirectory(prefix="nnunet_kd_teacher_") as unpacked, contextlib.suppress(TeacherError):
            return locate_teacher(wanted, self.results, self.plans, self.configuration, self.fold, Path(unpacked))
        return None

    def trained_folds(self, wanted: TeacherSettings) -> tuple[int, ...]:
        """Numbers of the folds of the model that settings mean, whichever fold they mean."""
        for fold in range(5):
            source = self.locate(wanted.model_copy(update={"fold": fold}))
            if source is not None and source.origin is None:
                found = source.model_folder.glob(f"fold_*/{source.checkpoint}")
                numbers = [path.parent.name.removeprefix("fold_") for path in found]
                return tuple(sorted(int(number) for number in numbers if number.isdigit()))
        return ()

    def of_run(self, settings: Settings) -> list[RunTeacher]:
        """The teachers that a run loads, or that its settings name; those that are not there are left out.

        Args:
            settings: the run's. A teacher with a hash is known by it.
        """
        loads = settings.runs_teacher() or settings.start == TEACHER
        named = [one for one in settings.teachers() if loads or one.path or one.sha256 or one.fold is not None]
        return [found for one in named for found in self._checkpoint(one)]

    def _checkpoint(self, wanted: TeacherSettings) -> Iterator[RunTeacher]:
        if wanted.sha256 is not None:
            fold = str(self.fold if wanted.fold is None else wanted.fold)
            yield RunTeacher(fold, wanted.sha256, str(wanted.path or "the settings' teacher"))
            return
        with tempfile.TemporaryDirectory(prefix="nnunet_kd_teacher_") as unpacked, contextlib.suppress(TeacherError):
            source = locate_teacher(wanted, self.results, self.plans, self.configuration, self.fold, Path(unpacked))
            yield RunTeacher(source.fold, hash_of(source.checkpoint_path), str(source))


def place_in_results(path: Path, results: Path | None) -> str:
    """How a set remembers where a teacher lies: below ``nnUNet_results`` without it, so that both can be moved; else in full.

    Args:
        path: model folder or archive.
        results: ``nnUNet_results``.
    """
    if results is not None:
        with contextlib.suppress(ValueError):
            return path.resolve().relative_to(results.resolve()).as_posix()
    return str(path.resolve())


def place_of(teacher: SoftTeacher, results: Path | None, dataset: str) -> Path | None:
    """Where a set's teacher lay; ``None``: not known.

    Args:
        teacher: of the set. Older sets know its model's name alone, which is looked for among the student's dataset's.
        results: ``nnUNet_results``.
        dataset: the student's.
    """
    if teacher.path is None:
        if results is None or teacher.trained_on is None:
            return None
        return (results / dataset / teacher.model).absolute()
    path = Path(teacher.path)
    if path.is_absolute():
        return path
    return None if results is None else (results / path).absolute()


def replaced_teacher(description: Description, teachers: StudentTeachers) -> str | None:
    """The file of a set's teacher in which another checkpoint lies now; ``None``: none is known to be another.

    A teacher that is not there any more has not been replaced: maps need none.
    """
    for one in description.teachers:
        place = place_of(one, teachers.results, teachers.dataset)
        digest = None if place is None else _digest_at(place, one, teachers.configuration)
        if digest is not None and digest != one.sha256:
            return str(place) if is_archive(Path(str(place))) else f"{place}/fold_{one.fold}/{one.checkpoint}"
    return None


def other_teacher(description: Description, used: Sequence[RunTeacher]) -> RunTeacher | None:
    """A teacher of a run that is another than the set's of the same fold; ``None``: there is none.

    Folds that only one of them has cannot be compared, and say nothing: maps of an ensemble beside one teacher, for example.
    """
    for one in used:
        same = {teacher.sha256 for teacher in description.teachers if str(teacher.fold) == one.fold}
        if same and one.sha256 not in same:
            return one
    return None


def _digest_at(place: Path, teacher: SoftTeacher, configuration: str) -> str | None:
    inside = f"fold_{teacher.fold}/{teacher.checkpoint}"
    if is_archive(place):
        with tempfile.TemporaryDirectory(prefix="nnunet_kd_teacher_") as unpacked, contextlib.suppress(ModelError):
            model = unpack_model(place, Path(unpacked), configuration, ("plans.json", "dataset.json", inside))
            return hash_of(model / inside)
        return None
    return hash_of(place / inside) if (place / inside).is_file() else None


def hash_of(path: Path) -> str:
    """SHA-256 of a file, computed once as long as its size and time of change stay."""
    seen = os.stat(path)
    return _hash(str(path.absolute()), seen.st_size, seen.st_mtime_ns, seen.st_ino)


@lru_cache(maxsize=64)
def _hash(path: str, size: int, modified: int, inode: int) -> str:
    return sha256(Path(path))
