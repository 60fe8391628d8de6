"""The student: started inside the teacher, then trained on what the teacher says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.distillation.settings_model import yaml_text
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.errors import SettingsError
from nnunet_kd.models.checkpoint import CONTINUED_FROM
from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.nnunet.environment import find_trainer
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.system.counts import counted, some
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.inherit import inherit_student
from nnunet_kd.workflows.shrink.dataset import FOLD, Split
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import TRAINER, Places, ShrinkRequest
from nnunet_kd.workflows.shrink.schedule import TrainingSchedule
from nnunet_kd.workflows.shrink.state import State

Show = Callable[[float, float, str], Any]


def assignments(
    request: ShrinkRequest,
    teacher: Teacher,
    maps: str | None = None,
    start: str = "teacher",
    schedule: TrainingSchedule | None = None,
    labelled: bool = False,
) -> str:
    """The training's settings, as ``NNUNET_KD_SET`` has them.

    Args:
        request: of the command.
        teacher: whose first fold the student starts in.
        maps: folder of the soft labels; ``None``: not made yet.
        start: first weights.
        schedule: ``None``: not fixed yet.
        labelled: whether any case that is trained on has labels; if not, the teacher alone teaches.
    """
    fold = teacher.model.folds[0]
    fixed = [
        f"teacher.path={yaml_text(str(teacher.model.folder))}",
        f"teacher.fold={fold}",
        f"teacher.checkpoint={teacher.model.checkpoint}",
        f"teacher.trusted={json.dumps(request.trusted)}",
        f"reduction={request.reduction:g}",
        f"start={yaml_text(start)}",
        "save_every=1",
        # agreement with the teacher is what is measured, so that nothing leaks
        "objectives.soft.allow_leak=true",
        *([f"objectives.soft.maps={yaml_text(maps)}"] if maps is not None else []),
        *([f"seed={request.seed}"] if request.seed is not None else []),
        *(schedule.assignments() if schedule is not None else []),
    ]
    preferred = [] if labelled else ["objectives.soft.alpha=1"]
    return json.dumps([*preferred, *request.assignments, *fixed])  # whatever a user's mapping holds, these stay


def check_settings(request: ShrinkRequest, teacher: Teacher) -> None:
    """Raise a SettingsError for ``--set`` that does not hold, as the trainer would."""
    trainer = find_trainer(TRAINER)
    environment = {SET_VARIABLE: assignments(request, teacher)}
    trainer.resolve(environment=environment)


def teachers_share(request: ShrinkRequest, teacher: Teacher, labelled: bool) -> float:
    """The share of the loss that the teacher has, from 0 (labels alone teach) to 1 (the teacher alone).

    Args:
        request, teacher: of the command.
        labelled: whether any case that is trained on has labels.
    """
    environment = {SET_VARIABLE: assignments(request, teacher, labelled=labelled)}
    soft = find_trainer(TRAINER).resolve(environment=environment).active_objectives()["soft"]
    return float(soft.alpha)


def check_taught(request: ShrinkRequest, teacher: Teacher, split: Split, images: Images) -> None:
    """Raise a SettingsError if nothing would be learned from the images without labels, because the teacher has no share."""
    untaught = [case for case in split.training if case not in images.labels]
    if untaught and teachers_share(request, teacher, len(untaught) < len(split.training)) == 0:
        raise SettingsError(
            f"--set objectives.soft.alpha=0 leaves the teacher out, and labels alone teach nothing about "
            f"{counted(len(untaught), 'image')} without labels ({some(untaught)}). Leave that setting out, or give labels of all "
            f"images with --labels."
        )


def make_trainer(request: ShrinkRequest, teacher: Teacher, continued: bool = False) -> DistillationTrainer:
    """The student's trainer, from nnU-Net's variables and settings as they are now."""
    made: DistillationTrainer = trainer_of_dataset(
        teacher.dataset,
        teacher.configuration,
        FOLD,
        TRAINER,
        str(teacher.plans["plans_name"]),
        torch.device(request.device),
        continued,
    )
    return made


def start_inside(make: Callable[[], DistillationTrainer], places: Places, show: Show) -> None:
    """Compute the student's first weights from the teacher's, unless they are there."""
    if (places.start / f"fold_{FOLD}" / FINAL).is_file():
        return
    inherit_student(
        make, places.start, overwrite=True, validated=False, progress=show, tell=lambda what: show(1, 1, what)
    )


def student_folder(places: Places, teacher: Teacher) -> Path:
    """Where nnU-Net puts the trained student."""
    model = f"{TRAINER}__{teacher.plans['plans_name']}__{teacher.configuration}"
    return places.work / "nnUNet_results" / teacher.dataset / model


def student_model(places: Places, teacher: Teacher) -> ModelFolder:
    """The trained student."""
    return ModelFolder(student_folder(places, teacher), (str(FOLD),), FINAL)


def is_trained(places: Places, teacher: Teacher) -> bool:
    """Whether the training has ended."""
    return student_model(places, teacher).checkpoint_path(str(FOLD)).is_file()


def train(
    make: Callable[[bool], DistillationTrainer], places: Places, teacher: Teacher, total: int, state: State, show: Show
) -> None:
    """Train to the end of the schedule, from the furthest checkpoint if there is one.

    Args:
        make: builds the trainer; told whether it goes on.
        places, teacher: of the work.
        total: iterations.
        state: keeps the time.
        show: told how far it is.
    """
    folder = student_folder(places, teacher) / f"fold_{FOLD}"
    begun = any((folder / name).is_file() for name in CONTINUED_FROM)
    trainer = make(begun)
    if begun:
        trainer.load_checkpoint(str(folder / CONTINUED_FROM[1]))  # takes the readable one that got furthest
    done = trainer.current_epoch * trainer.num_iterations_per_epoch
    show(done, total, "the loaders start")
    train_step = trainer.train_step

    def counted(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        result = train_step(batch)
        done += 1
        show(done, total, f"epoch {trainer.current_epoch + 1} of {trainer.num_epochs}")
        state.tick()
        return result

    trainer.train_step = counted  # type: ignore[method-assign]
    trainer.run_training()


def labelled_cases(training: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Cases to train on that have labels."""
    return sorted(set(training) & set(labels))
