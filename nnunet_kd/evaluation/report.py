"""``report.html``: one file with everything a comparison found, which opens without network."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from rich.console import Console
from rich.progress import track

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation import charts
from nnunet_kd.evaluation.case_figures import CaseImages, choose_cases, class_colours, draw_panels
from nnunet_kd.evaluation.comparison import Comparison
from nnunet_kd.evaluation.costs.profiling import Profile
from nnunet_kd.evaluation.costs.tables import profile_table
from nnunet_kd.evaluation.labels import LabelSet
from nnunet_kd.evaluation.metrics import DICE, HD95, NSD
from nnunet_kd.evaluation.page import write_page
from nnunet_kd.evaluation.results import paired_values
from nnunet_kd.evaluation.runs import Method, Run
from nnunet_kd.evaluation.tables import Table, class_tables, difference_tables, fixed, overall_table, signed
from nnunet_kd.volumes.reading import read_images, read_segmentation, whole_numbers

CHARTED = (DICE, HD95, NSD)


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows in words.

    Attributes:
        source: data URI.
        text: caption, also what a screen reader says.
    """

    source: str
    text: str


@dataclass(frozen=True)
class Pictures:
    """What pictures of cases are made of.

    Attributes:
        labels: of the dataset.
        reader: nnU-Net's, for the segmentations and images.
        images: a case's image file; ``None`` draws contours on black.
        focus: the method whose worst, median and best cases are shown.
    """

    labels: LabelSet
    reader: BaseReaderWriter
    images: Callable[[str], Path] | None
    focus: str


@dataclass(frozen=True)
class ReportInput:
    """What the report is made of.

    Attributes:
        comparison: the numbers.
        methods: in the order of the comparison; empty where nothing but values was kept.
        pictures: of the cases; ``None`` where there are no predictions any more.
        fold: of which these cases are the validation set; ``None`` if not known.
        warnings: what a reader must know.
        profiles: by method, from ``nnunet-kd profile``; may be empty.
        facts: further lines for the head of the page.
        training: what training took; ``None`` if not known.
        by_training: differences seed by seed; empty unless methods were trained more than once.
        calibration: of probabilities; ``None`` if no method has saved any.
    """

    comparison: Comparison
    methods: Sequence[Method]
    pictures: Pictures | None
    fold: str | None
    warnings: Sequence[str]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    training: Table | None = None
    by_training: Sequence[Table] = ()
    calibration: Table | None = None


def write_report(given: ReportInput, path: Path) -> None:
    """Draw everything and write the page."""
    write_page("report.html.j2", _content(given), path)


def _content(given: ReportInput) -> dict[str, Any]:
    comparison = given.comparison
    profiles = [given.profiles[method.name] for method in given.methods if method.name in given.profiles]
    return {
        "facts": _facts(given),
        "warnings": given.warnings,
        "overall": overall_table(comparison),
        "class_tables": class_tables(comparison),
        "difference_tables": difference_tables(comparison),
        "by_training": given.by_training,
        "calibration": given.calibration,
        "boxes": [_svg(charts.box_plot(comparison, m), f"{m.title} by case") for m in CHARTED],
        "differences": [
            _svg(charts.difference_plot(comparison, m), f"{m.title}: difference to {comparison.reference} by case")
            for m in CHARTED
        ],
        "cases": list(_cases(comparison, given.pictures)) if given.pictures is not None else [],
        "pictured": given.pictures,
        "reference": comparison.reference,
        "legend": class_colours(comparison.classes),
        "costs": list(_costs(given)),
        "profile": profile_table(profiles) if profiles else None,
        "training": given.training,
        "curves": list(_curves(given)),
        "runs": [(method, _run_facts(method), _settings(method.run)) for method in given.methods],
    }


def _svg(text: str, caption: str) -> Figure:
    return Figure(f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}", caption)


def _facts(given: ReportInput) -> dict[str, str]:
    comparison, options = given.comparison, given.comparison.evaluations[given.comparison.reference].options
    datasets = sorted({method.run.dataset_name for method in given.methods if method.run is not None})
    both = "left out and counted" if options.empty == "nan" else "1 (HD95: 0 mm)"
    one = "left out and counted" if options.hd95_penalty is None else f"{options.hd95_penalty:g} mm"
    return {
        "Dataset": ", ".join(datasets) or "not known (no model folder)",
        "Cases": str(len(comparison.cases)),
        **(
            {}
            if comparison.patients is None
            else {"Patients": f"{comparison.units}, over whom means and tests are taken"}
        ),
        "Fold": given.fold if given.fold is not None else "not known",
        "Classes": ", ".join(comparison.classes),
        "Methods": ", ".join(comparison.evaluations),
        "Compared with": comparison.reference,
        "Gap measured to": comparison.teacher or "no teacher given",
        "NSD tolerance": f"{options.nsd_tolerance:g} mm",
        "Both masks empty": both,
        "HD95, one mask empty": one,
        **given.facts,
    }


def _cases(comparison: Comparison, given: Pictures) -> Iterator[dict[str, Any]]:
    values = {name: evaluation.per_case(DICE.name) * DICE.scale for name, evaluation in comparison.evaluations.items()}
    pair = [comparison.evaluations[name] for name in (given.focus, comparison.reference)]
    own, base = (found * DICE.scale for found in paired_values(pair, DICE.name))
    chosen = choose_cases(own, base, DICE.better)
    console = Console(stderr=True)
    for kind, index in track(
        chosen.items(),
        "drawing cases",
        total=len(chosen),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        case = comparison.cases[index]
        panels, axis, position = draw_panels(_load(comparison, given, case), given.labels.classes)
        yield {
            "kind": kind,
            "case": case,
            "difference": signed(float(own[index] - base[index])),
            "slice": f"slice {position} of axis {axis}",
            "panels": [
                (
                    Figure(f"data:image/png;base64,{base64.b64encode(panel.png).decode()}", panel.title),
                    f"Dice {fixed(float(values[panel.title][index]), 1)}%" if panel.title in values else "",
                )
                for panel in panels
            ],
        }


def _load(comparison: Comparison, given: Pictures, case: str) -> CaseImages:
    """A case's arrays."""
    base = comparison.evaluations[comparison.reference]
    name = case + given.labels.file_ending
    return read_case(
        None if given.images is None else given.images(case),
        base.reference_folder / name,
        {name_: evaluation.folder_of(case) / name for name_, evaluation in comparison.evaluations.items()},
        given.reader,
    )


def read_case(
    image: Path | None, reference: Path, predictions: Mapping[str, Path], reader: BaseReaderWriter
) -> CaseImages:
    """A case's arrays, axes flipped towards superior, posterior and left where the reader tells the direction.

    Args:
        image: file of the channel that is drawn; ``None``: black.
        reference: file that the predictions are compared with.
        predictions: files by method.
        reader: of all files.

    Raises:
        DataError: a file cannot be read, or image and reference differ in shape.
    """
    true, properties = read_segmentation(reference, reader)
    direction = np.reshape(properties.get("sitk_stuff", {}).get("direction", np.eye(3)), (-1,))
    flips: tuple[int, ...] = ()
    if direction.size == 9:
        columns = direction.reshape(3, 3).T
        flips = tuple(2 - i for i, column in enumerate(columns) if column[np.argmax(np.abs(column))] < 0)
    drawn = np.zeros_like(true)
    if image is not None:
        drawn, _ = read_images([image], reader)
        if drawn.shape[1:] != true.shape[1:]:
            raise DataError(f"{image} and {reference} differ in shape. Give other images with -i.")
    said = {name: whole_numbers(read_segmentation(path, reader)[0])[0] for name, path in predictions.items()}
    depth, height, width = (float(step) for step in properties["spacing"])
    return CaseImages(
        np.flip(drawn[0], flips),
        np.flip(whole_numbers(true)[0][0], flips),
        {name: np.flip(prediction[0], flips) for name, prediction in said.items()},
        (depth, height, width),
        flips,
    )


def _costs(given: ReportInput) -> Iterator[Figure]:
    parameters = {m.name: m.run.parameters / 1e6 for m in given.methods if m.run is not None and m.run.parameters}
    parameters |= {name: profile.parameters / 1e6 for name, profile in given.profiles.items()}
    if parameters:
        yield _svg(
            charts.cost_plot(given.comparison, parameters, "parameters (millions)"), "Dice against number of parameters"
        )
    for device in dict.fromkeys(device for profile in given.profiles.values() for device in profile.devices):
        for kind, label in (("volume", "whole volume"), ("patch", "one patch")):
            latency = {
                name: profile.devices[device].latency[kind].median
                for name, profile in given.profiles.items()
                if device in profile.devices and kind in profile.devices[device].latency
            }
            if latency:
                text = f"latency (s), {label}, {device}, no mirroring"
                yield _svg(charts.cost_plot(given.comparison, latency, text), f"Dice against {text}")
                break


def _curves(given: ReportInput) -> Iterator[Figure]:
    colours = charts.method_colours(list(given.comparison.evaluations))
    runs = {method.name: method.run.curves for method in given.methods if method.run is not None}
    for title in dict.fromkeys(title for curves in runs.values() for title in curves):
        lines = {name: curves[title] for name, curves in runs.items() if title in curves}
        if any(math.isfinite(value) for values in lines.values() for value in values):
            yield _svg(charts.curves_plot(lines, colours, title), f"{title} by epoch")


def _run_facts(method: Method) -> dict[str, str]:
    facts = {"Predictions": str(method.predictions)}
    if (run := method.run) is None:
        return facts
    facts |= {"Model": run.model_folder.name, "Fold": run.fold}
    if run.parameters is not None:
        facts["Parameters"] = f"{run.parameters:,}"
    if not math.isnan(run.clipped):
        facts["Steps whose gradient was clipped"] = f"{run.clipped:.1%}"
    if run.checkpoint is not None and run.checkpoint_sha256 is not None:
        facts |= {"Checkpoint": run.checkpoint.name, "Checkpoint SHA-256": run.checkpoint_sha256}
    for number, teacher in enumerate(run.teachers, 1):
        title = "Teacher" if len(run.teachers) == 1 else f"Teacher {number}"
        facts |= {
            title: str(teacher.get("path") or "not known"),
            f"{title}, fold": str(teacher.get("fold", "not known")),
            f"{title}, SHA-256": str(teacher.get("sha256") or "not known"),
        }
    if not run.teachers:
        facts["Distillation"] = "none recorded" if run.settings is None else "none (no teacher)"
    return facts


def _settings(run: Run | None) -> str | None:
    if run is None or run.settings is None:
        return None
    return str(yaml.safe_dump(dict(run.settings), sort_keys=False))
