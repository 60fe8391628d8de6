"""What a run was asked for, and what a reader of its report must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_kd.system.counts import some
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.shrink.dataset import Split
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import ShrinkRequest, plain
from nnunet_kd.workflows.shrink.schedule import TrainingSchedule
from nnunet_kd.workflows.shrink.state import State
from nnunet_kd.workflows.shrink.training import teachers_share


def arguments_of(request: ShrinkRequest) -> dict[str, Any]:
    """By what a user calls them; with another value it is another work. What only lets a run go on is not among them."""
    model = request.model.expanduser()
    return {
        "MODEL": plain(request.model),
        "SHA-256 of MODEL": sha256(model) if model.is_file() else None,
        "IMAGES": plain(request.images),
        "-r": request.reduction,
        "-c": request.configuration,
        "--minutes": request.minutes,
        "--iterations": request.iterations,
        "--labels": None if request.labels is None else plain(request.labels),
        "--group-regex": request.group_regex,
        "--seed": request.seed,
        "--device": request.device,
        "--mirroring": request.mirroring,
        "--set": plain(request.assignments),
    }


def model_warnings(teacher: Teacher, images: Images) -> list[str]:
    """In what the images are not as the model was trained, and which are its own training cases."""
    found = [f"Not as the model was trained: {line}" for line in images.warnings()]
    own = own_cases(teacher, images)
    if own:
        found.append(
            f"{len(own)} images have the names of cases that the model was trained on ({some(own)}). What it says of these "
            f"may be better than what it says of others."
        )
    return found


def own_cases(teacher: Teacher, images: Images) -> list[str]:
    """Images that are the teacher's own training cases, by their names."""
    return sorted({case for cases in teacher.trained_on.values() for case in cases} & set(images.cases))


def facts_of(
    request: ShrinkRequest,
    teacher: Teacher,
    images: Images,
    split: Split,
    labelled: Sequence[str],
    mirroring: bool,
    schedule: TrainingSchedule,
    state: State,
) -> dict[str, str]:
    """The head of the report."""
    labels = f"labels of {len(labelled)} images"
    share = teachers_share(request, teacher, bool(labelled))
    taught = (
        "the teacher alone"
        if not labelled or share == 1
        else f"the teacher, and {labels}"
        if share
        else f"{labels} alone"
    )
    digests = ", ".join(f"{fold} (SHA-256 {digest[:12]})" for fold, digest in teacher.digests.items())
    own = len(own_cases(teacher, images))
    return {
        "Teacher": f"{request.model.name}: {teacher.dataset}, {teacher.configuration}",
        "Teacher's folds": digests,
        "Student": f"channels divided by {request.reduction:g}, started inside fold {teacher.model.folds[0]}",
        "Images": f"{len(images.cases)}: {len(split.training)} to train on, {len(split.held_out)} kept aside",
        "Of them the teacher's training cases": f"{own}, by name"
        if teacher.trained_on
        else "not known: the model has no record",
        "Learned from": taught,
        "Training": f"{schedule.iterations} iterations ({schedule.epochs} epochs of {schedule.iterations_per_epoch})",
        "Mirroring": "in all predictions" if mirroring else "in none",
        "Seed": "none" if request.seed is None else str(request.seed),
        "Time": f"{state.seconds / 60:.1f} minutes in all, on {request.device}",
    }
