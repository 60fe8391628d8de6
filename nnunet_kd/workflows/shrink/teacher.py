"""What the teacher says: segmentations of the images kept aside, soft labels of those that are trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.soft_labels.maps import finds_nothing, open_map
from nnunet_kd.distillation.starts.pairing import pair
from nnunet_kd.errors import DataError, PlanError
from nnunet_kd.evaluation.costs.profiling import count_windows
from nnunet_kd.evaluation.costs.timing import time_in_turn
from nnunet_kd.inference.session import RunOptions, open_predictor
from nnunet_kd.models.folder import load_predictor, new_predictor
from nnunet_kd.models.plans import build_meta_network, inputs_and_heads, reduce_plans
from nnunet_kd.models.training_cases import validation_summary
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.system.counts import some
from nnunet_kd.volumes.reading import read_segmentation
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import Places, ShrinkRequest
from nnunet_kd.workflows.shrink.signs import FAR
from nnunet_kd.workflows.shrink.state import State
from nnunet_kd.workflows.soften import Softened, SoftenOptions, soften

MIRRORING_SHARE = 0.25
"""Of ``--minutes`` that the teacher may take with mirroring; else it predicts without."""
TIMED_PATCHES = 3

Show = Callable[[float, float, str], Any]


def teacher_settings(teacher: Teacher, trusted: bool, fold: str | None = None) -> TeacherSettings:
    """The teacher as trainers look for it."""
    number = None if fold is None else ("all" if fold == "all" else int(fold))
    return TeacherSettings(
        path=str(teacher.model.folder), fold=number, checkpoint=teacher.model.checkpoint, trusted=trusted
    )


def load_teacher(request: ShrinkRequest, teacher: Teacher) -> nnUNetPredictor:
    """nnU-Net's predictor with the teacher's network, on the device that was asked for."""
    predictor = new_predictor(False, request.device)
    predictor.device = torch.device(request.device)
    load_predictor(teacher.model, predictor, request.trusted)
    return predictor


def check_start(request: ShrinkRequest, teacher: Teacher, network: nn.Module) -> None:
    """Whether a student can start inside the teacher's network, as its trainer built it.

    Raises:
        PlanError: it cannot, and that is how ``shrink`` begins.
    """
    student = reduce_plans(teacher.plans, request.reduction, teacher.configuration)
    sizes = inputs_and_heads(student, teacher.configuration, teacher.dataset_json)
    try:
        pair(network, build_meta_network(student, teacher.configuration, *sizes))
    except PlanError as error:
        raise PlanError(
            f"{request.model}: no student can start inside this network: {error}. shrink needs that start. It takes "
            f"PlainConvUNet and ResidualEncoderUNet with instance norm, as nnU-Net plans them."
        ) from error


def choose_mirroring(
    request: ShrinkRequest, teacher: Teacher, images: Images, predictor: nnUNetPredictor
) -> tuple[bool, float]:
    """Whether predictions are averaged over mirrored images, and how many seconds the teacher will take.

    Args:
        request, teacher, images: as found.
        predictor: from :func:`load_teacher`.

    Returns:
        The choice; and windows times mirrored passes times folds times the measured seconds of one patch.
    """
    network = predictor.network.to(predictor.device).eval()
    shape = (1, _input_channels(network), *teacher.patch_size)
    with torch.inference_mode():
        patch = torch.zeros(shape, device=predictor.device)
        timed = time_in_turn({"patch": lambda: network(patch)}, TIMED_PATCHES, predictor.device)["patch"]
    passes = 2 ** len(predictor.allowed_mirroring_axes or ())
    alone = timed.median * _windows(images, teacher) * len(teacher.model.folds)
    if request.mirroring is not None:
        chosen = request.mirroring
    else:
        chosen = request.minutes is None or alone * passes <= MIRRORING_SHARE * 60 * request.minutes
    return chosen, alone * (passes if chosen else 1)


def _input_channels(network: torch.nn.Module) -> int:
    first = next(one for one in network.modules() if isinstance(one, (torch.nn.Conv2d, torch.nn.Conv3d)))
    return first.in_channels


def _windows(images: Images, teacher: Teacher) -> int:
    plans = teacher.plans
    target = list(PlansManager(plans).get_configuration(teacher.configuration).spacing)
    total = 0
    for image in images.seen.values():
        own = [image.spacing[axis] for axis in plans["transpose_forward"]]
        shape = [image.shape[axis] for axis in plans["transpose_forward"]]
        wanted = target if len(target) == len(own) else [own[0], *target]
        resampled = [max(1, round(n * step / goal)) for n, step, goal in zip(shape, own, wanted, strict=True)]
        total += count_windows(resampled, teacher.patch_size)
    return total


def predict_held_out(
    who: str,
    model: Path,
    options: RunOptions,
    images: Images,
    cases: Sequence[str],
    places: Places,
    ending: str,
    state: State,
    show: Show,
) -> None:
    """Segmentations of the images kept aside, as ``nnunet-kd predict`` makes them; those that are there stay.

    The time that they took is added up in the state, so that both models' speed can be told.

    Args:
        who: ``teacher`` or ``student``.
        model, options: which predicts, and how.
        images, cases: all images, and the names of those kept aside.
        places: of the output folder.
        ending: of the segmentations.
        state: keeps the time.
        show: told how far it is.
    """
    folder = places.predictions(who)
    every = [images.cases[name].predicted_to(folder, ending) for name in cases]
    todo = [case for case in every if not case.output.is_file()]
    if not todo:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open_predictor(model, options) as opened:
        show(len(every) - len(todo), len(every), todo[0].name)
        before = state.values.get(f"predicted_by_{who}", {"seconds": 0.0, "images": 0})
        began = time.monotonic()

        def keep(images: int) -> None:
            seconds = before["seconds"] + time.monotonic() - began
            state.keep(f"predicted_by_{who}", {"seconds": seconds, "images": before["images"] + images})

        for count, case in enumerate(opened.predictor.predict_cases(todo), 1):
            keep(count)  # of every image, so that a stopped run's count, too
            show(len(every) - len(todo) + count, len(every), case.name)
        keep(len(todo))  # the last one is written by now


def empty_segmentations(folder: Path, cases: Sequence[str], ending: str, teacher: Teacher) -> list[str]:
    """Cases whose segmentation holds background only."""
    reader = teacher.reader
    return [case for case in cases if not np.any(read_segmentation(folder / f"{case}{ending}", reader)[0] > 0)]


def empty_maps(made: Softened, cases: Sequence[str]) -> list[str]:
    """Cases whose soft labels decide for background everywhere."""
    return [case for case in cases if finds_nothing(open_map(made.folder, case), made.description.has_regions)]


def strange_volumes(folder: Path, cases: Sequence[str], ending: str, teacher: Teacher) -> str | None:
    """Whether the teacher finds far more or less in most images than its own validation cases have, in figures.

    The volume of everything but background is compared with that of the references in the model's ``validation/summary.json``, at
    the training data's median spacing. Nothing is told without one.
    """
    usual = _reference_volumes(teacher)
    if not usual:
        return None
    reader, own = teacher.reader, []
    for case in cases:
        array, properties = read_segmentation(folder / f"{case}{ending}", reader)
        own.append(float((array > 0).sum()) * math.prod(properties["spacing"]) / 1000)
    low, high = min(usual) / FAR, max(usual) * FAR
    strange = [volume for volume in own if not low <= volume <= high]
    if 2 * len(strange) <= len(own):
        return None
    return (
        f"the model finds {min(own):.3g} to {max(own):.3g} ml in these images. The references of its own validation have "
        f"{min(usual):.3g} to {max(usual):.3g} ml."
    )


def _reference_volumes(teacher: Teacher) -> list[float]:
    """In ml, of the validation cases of all folds."""
    spacing = teacher.plans.get("original_median_spacing_after_transp")
    if spacing is None:
        return []
    regions = PlansManager(teacher.plans).get_label_manager(teacher.dataset_json).has_regions
    volumes = []
    for fold in teacher.model.folds:
        for case in validation_summary(teacher.model, fold):
            counts = [values["n_ref"] for values in case.get("metrics", {}).values() if "n_ref" in values]
            if counts:  # regions lie within each other
                volumes.append((max(counts) if regions else sum(counts)) * math.prod(spacing) / 1000)
    return volumes


def refuse_if_mostly_empty(empty: Sequence[str], of: int, what: str, allowed: bool) -> None:
    """Raise a DataError if the teacher finds nothing in more than half of the images."""
    if 2 * len(empty) > of and not allowed:
        raise DataError(
            f"the model finds nothing in {len(empty)} of {of} {what} ({some(empty)}). A student would learn to find nothing. "
            f"Are these images of the kind that the model was trained on? If this is meant, go on with --allow-empty."
        )


def soften_training_cases(
    make: Callable[[], Any], request: ShrinkRequest, teacher: Teacher, mirroring: bool, state: State, show: Show
) -> Softened:
    """Soft labels with all folds of the teacher; maps that are there stay."""

    def progress(done: int, total: int, case: str) -> None:
        show(done, total, case)
        state.tick()

    folds = tuple(fold if fold == "all" else int(fold) for fold in teacher.model.folds)
    known: Mapping[str, Sequence[str]] = teacher.trained_on
    with variables_set_to({"nnUNet_compile": "f"}):
        return soften(
            make,
            teacher_settings(teacher, request.trusted),
            # its students say of themselves that they leak
            SoftenOptions(folds, mirroring, trained_on=known, allow_leak=True, for_live_too=False),
            torch.device(request.device),
            progress,
        )
