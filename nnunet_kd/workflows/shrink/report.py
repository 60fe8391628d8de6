"""``report.html``: what came out, what it means, and what it does not."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import nnunet_kd
from nnunet_kd.errors import NnunetKdError
from nnunet_kd.evaluation.case_figures import class_colours, draw_panels
from nnunet_kd.evaluation.costs.profiling import ProfileOptions, profile_models
from nnunet_kd.evaluation.costs.tables import profile_table
from nnunet_kd.evaluation.labels import read_labels
from nnunet_kd.evaluation.metrics import DICE, HD95, NSD
from nnunet_kd.evaluation.page import write_page
from nnunet_kd.evaluation.report import Figure, read_case
from nnunet_kd.evaluation.results import OVERALL, Evaluation
from nnunet_kd.evaluation.tables import Table, class_tables, fixed, mean_and_error, overall_table
from nnunet_kd.inference.onnx_metadata import json_path
from nnunet_kd.workflows.shrink.agreement import Agreement
from nnunet_kd.workflows.shrink.dataset import Split
from nnunet_kd.workflows.shrink.images import Images
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import Places

SHOWN_CASES = 3
REPEATS = 3
REPORTED = (DICE, HD95, NSD)

MEANING = (
    "The teacher's segmentations are the reference here, on images that the student was not trained on. 100% Dice means that "
    "both say the same. It does not mean that they are right: where the teacher is wrong, a perfect student is wrong, too."
)
MEANINGLESS = (
    "Most of these images are not of the kind that the model was trained on. What it says of them is not known to be right, so "
    "agreement with it means nothing here: the student may copy segmentations that are wrong. Use images of the model's kind."
)


@dataclass(frozen=True)
class Told:
    """What the report is made of.

    Attributes:
        teacher, images, split, agreement: of the run.
        facts: further lines for the head of the page.
        warnings: what a reader must know.
        foreign: whether agreement means nothing, because most images are not of the model's kind.
        seconds: by ``teacher`` and ``student``, of predicting one image; without those that were not timed.
        without_onnx: why there is no ONNX file.
    """

    teacher: Teacher
    images: Images
    split: Split
    agreement: Agreement
    facts: Mapping[str, str]
    warnings: Sequence[str]
    foreign: bool
    seconds: Mapping[str, float]
    without_onnx: str | None


def write(told: Told, places: Places, device: str) -> None:
    """Draw everything and write the page.

    Raises:
        MissingRequirement: the disk refused.
    """
    own = told.agreement.with_teacher
    profile, unprofiled = _profile(told.teacher, places, device)
    against = told.agreement.against_labels
    labels = read_labels(told.teacher.dataset_json, places.predictions("teacher") / "dataset.json")
    content = {
        "title": f"Student of {told.teacher.dataset}, {told.teacher.configuration}",
        "warnings": [*([MEANINGLESS] if told.foreign else []), *told.warnings],
        "facts": {**told.facts, "Written by": f"nnunet-kd {nnunet_kd.__version__}"},
        "meaning": MEANINGLESS if told.foreign else MEANING,
        "agreement": agreement_table(own),
        "labels_tables": [] if against is None else [overall_table(against), *class_tables(against)[:3]],
        "labelled": 0 if against is None else len(against.cases),
        "profile": profile,
        "unprofiled": unprofiled,
        "speed": _speed_table(told),
        "cases": list(_cases(told, places)),
        "legend": class_colours(list(labels.classes)),
        "files": _files(told, places),
    }
    write_page("shrink.html.j2", content, places.report)


def agreement_table(own: Evaluation) -> Table:
    """One row per class and one for all, mean ± standard error over the images kept aside."""
    rows = [
        (name, *(mean_and_error(own.summary(metric.name, name), metric) for metric in REPORTED))
        for name in (OVERALL, *own.classes)
    ]
    empty = {name: own.empty_counts(name)["both_empty"] for name in own.classes}
    nothing = [f"{name} in {count}" for name, count in empty.items() if count]
    note = f"Mean ± standard error over {len(own.cases)} images; NSD at {own.options.nsd_tolerance:g} mm."
    note += f" Neither finds {', '.join(nothing)} images, which are left out there." if nothing else ""
    return Table("Student against teacher", ("class", *(metric.heading for metric in REPORTED)), tuple(rows), note)


def _profile(teacher: Teacher, places: Places, device: str) -> tuple[Table | None, str]:
    """The costs of both models, or why they are not known."""
    devices = (device,) if device in ("cpu", "cuda") else ("cpu",)
    # a large model's patch takes seconds on a CPU, and the time of whole images was taken when they were predicted
    options = ProfileOptions(devices, REPEATS, 1, time_volumes=False, time_mirrored=False, peak_memory=False)
    models = {"teacher": teacher.model.folder, "student": places.student_zip}
    try:
        return profile_table(profile_models(models, options, teacher.configuration)), ""
    except NnunetKdError as error:  # a checkpoint that was loaded on the user's word alone, for example
        return None, str(error)


def _speed_table(told: Told) -> Table:
    names = list(told.seconds)
    folds = len(told.teacher.model.folds)
    header = ("", *(f"{name} ({folds} folds)" if name == "teacher" and folds > 1 else name for name in names))
    cells = [f"{told.seconds[name]:.2f}" for name in names]
    note = (
        "Measured while the images kept aside were predicted, reading and writing included. The teacher predicts with all of its "
        "folds."
    )
    return Table("Seconds for one image on this machine", header, (("whole prediction", *cells),), note)


def _cases(told: Told, places: Places) -> Iterator[dict[str, Any]]:
    own = told.agreement.with_teacher
    dice = own.per_case(DICE.name)
    order = [int(place) for place in np.argsort(dice, kind="stable") if not np.isnan(dice[place])]
    description = places.predictions("teacher") / "dataset.json"
    labels = read_labels(told.teacher.dataset_json, description)
    for place in order[:SHOWN_CASES]:
        case = own.cases[place]
        name = f"{case}{labels.file_ending}"
        arrays = read_case(
            told.images.cases[case].images[0],
            places.predictions("teacher") / name,
            {"student": places.predictions("student") / name},
            told.teacher.reader,
        )
        panels, axis, position = draw_panels(arrays, labels.classes)
        yield {
            "name": case,
            "dice": fixed(float(dice[place]) * DICE.scale, 1),
            "slice": f"slice {position} of axis {axis}",
            "panels": [
                Figure(
                    f"data:image/png;base64,{base64.b64encode(panel.png).decode()}",
                    "teacher" if panel.title == "reference" else panel.title,
                )
                for panel in panels
            ],
        }


def _files(told: Told, places: Places) -> dict[str, str]:
    found = {"student.zip": "the student for stock nnU-Net: nnUNetv2_install_pretrained_model_from_zip student.zip"}
    if told.without_onnx is None:
        name = json_path(places.student_onnx).name
        found[f"student.onnx, {name}"] = "the same for ONNX runtimes: nnunet-kd predict -m student.onnx"
    else:
        found["student.onnx"] = f"was not written: {told.without_onnx}"
    found["agreement.json"] = "all numbers of agreement, case by case"
    found["work"] = "everything in between; it may be deleted"
    return found
