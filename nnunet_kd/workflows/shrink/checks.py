"""Everything that can be known before the first step: model, images, disk and time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from nnunet_kd.errors import MissingRequirement
from nnunet_kd.workflows.shrink.dataset import Split, split_cases
from nnunet_kd.workflows.shrink.facts import model_warnings
from nnunet_kd.workflows.shrink.images import Images, bytes_needed, look_at
from nnunet_kd.workflows.shrink.model import Teacher, find_teacher
from nnunet_kd.workflows.shrink.report import MEANINGLESS
from nnunet_kd.workflows.shrink.request import Listener, Places, ShrinkRequest
from nnunet_kd.workflows.shrink.state import State, folder_fingerprint
from nnunet_kd.workflows.shrink.teacher import check_start, choose_mirroring, load_teacher
from nnunet_kd.workflows.shrink.training import check_settings, check_taught

MOST_OF_BUDGET = 0.8
"""Share of ``--minutes`` that the teacher alone may take."""


@dataclass(frozen=True)
class Checked:
    """What is there, and what follows from it.

    Attributes:
        teacher, images: as found.
        split: which images are kept aside.
        mirroring: of all predictions.
        warnings: for the report.
    """

    teacher: Teacher
    images: Images
    split: Split
    mirroring: bool
    warnings: list[str]


def look_at_everything(request: ShrinkRequest, places: Places, state: State, listener: Listener) -> Checked:
    """Find model and images, and begin the output folder if nothing is wrong with them.

    Args:
        request: of the command.
        places: of the output folder.
        state: fixes what was found; written here for the first time.
        listener: told what was found, and warned.

    Raises:
        NnunetKdError: what is wrong, by name.
    """
    teacher = find_teacher(request.model, request.configuration, request.reduction, request.trusted, places)
    check_settings(request, teacher)
    predictor = None if "mirroring" in state.values else load_teacher(request, teacher)  # else checked before
    if predictor is not None:
        check_start(request, teacher, predictor.network)
    images = look_at(request.images, request.labels, teacher, listener.show)
    state.same("model", dict(teacher.digests), "the model's checkpoints")
    state.same("images", folder_fingerprint(images.files, listener.show), "the images")
    state.same("labels", folder_fingerprint(list(images.labels.values()), listener.show), "the labels")
    split = split_cases(list(images.cases), request.group_regex)
    check_taught(request, teacher, split, images)
    listener.tell(
        f"Model: {teacher.dataset}, {teacher.configuration}, folds {', '.join(teacher.model.folds)}. Images: "
        f"{len(images.cases)}, of which {len(split.held_out)} are kept aside to measure agreement."
    )
    if images.labels:
        listener.tell(f"Labels: of {len(images.labels)} images.")
    warnings = model_warnings(teacher, images)
    for line in [*warnings, *([MEANINGLESS] if images.foreign else [])]:
        listener.warn(line)
    if teacher.without_onnx is not None:
        listener.warn(f"student.onnx will not be written: {teacher.without_onnx}")
    _check_disk(images, teacher, places, listener, begun=predictor is None)
    if predictor is None:
        mirroring = bool(state.values["mirroring"])
    else:
        mirroring, seconds = choose_mirroring(request, teacher, images, predictor)
        _check_budget(request, mirroring, seconds, listener)
        state.values["mirroring"] = mirroring
    state.save()
    return Checked(teacher, images, split, mirroring, warnings)


def _check_disk(images: Images, teacher: Teacher, places: Places, listener: Listener, begun: bool) -> None:
    """Say what the work takes; what was begun has a part of it already."""
    needed, free = bytes_needed(images, teacher), shutil.disk_usage(places.work).free
    told = f"up to {max(1, needed >> 20):,} MiB in {places.work}, where {free / 2**30:.1f} GiB are free"
    listener.tell(f"Disk: {told}.")
    if needed > free and not begun:
        raise MissingRequirement(f"the work takes {told}. Free space, or choose another OUT.")


def _check_budget(request: ShrinkRequest, mirroring: bool, seconds: float, listener: Listener) -> None:
    how = "with" if mirroring else "without"
    listener.tell(f"The teacher is reckoned to take {seconds / 60:.1f} minutes for all images, {how} mirroring.")
    if request.minutes is not None and seconds > MOST_OF_BUDGET * 60 * request.minutes:
        less = "--no-mirroring, " if mirroring else ""
        raise MissingRequirement(
            f"--minutes {request.minutes:g}: the teacher alone takes about {seconds / 60:.1f} minutes for these images, {how} "
            f"mirroring. Give more minutes, fewer images, {less}or a GPU."
        )
