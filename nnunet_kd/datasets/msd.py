"""Datasets in the layout of the Medical Segmentation Decathlon: ``TaskXX_Name`` with ``imagesTr``, ``labelsTr``, ``imagesTs``.

A case with several channels is one 4D file. Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications
2022, doi:10.1038/s41467-022-30695-9.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from nnunet_kd.datasets.case import (
    LABEL,
    Case,
    ConversionOptions,
    DatasetDescription,
    Volume,
    mark_duplicates,
    nifti_stem,
    readable_folders,
)
from nnunet_kd.datasets.conversion import ConversionSummary, convert
from nnunet_kd.datasets.splits import groups_by_regex
from nnunet_kd.errors import DataError

_TASK = re.compile(r"Task(?P<id>\d+)_(?P<name>\w+)")


@dataclass(frozen=True)
class _Task:
    """What ``dataset.json`` says."""

    name: str
    channels: tuple[str, ...]
    labels: dict[str, int | tuple[int, ...]]
    licence: str
    reference: str
    description: str
    training: tuple[str, ...]
    test: tuple[str, ...]
    """File names that it lists."""


def convert_msd(
    source: str | Path,
    *,
    dataset_id: int | None = None,
    group_regex: str | None = None,
    options: ConversionOptions | None = None,
) -> ConversionSummary:
    """Convert a Decathlon task into nnU-Net's format.

    Args:
        source: the extracted ``TaskXX_Name``.
        dataset_id: nnU-Net's number of the dataset; default: the task's (``Task04_Hippocampus`` becomes 4).
        group_regex: finds the patient in a case's name, as in ``groups_by_regex``; default: every case is a patient.
        options: see ``ConversionOptions``.

    Raises:
        BadCasesError: cases that do not hold, all listed.
        DataError: the source is not such a task; target or splits do not hold.
        MissingRequirement: ``nnUNet_raw`` is not set.
    """
    (folder,) = readable_folders([Path(source)])
    task = _read_task(folder)
    if dataset_id is None:
        parsed = _TASK.fullmatch(folder.name)
        if parsed is None:
            raise DataError(
                f"{folder.name} is not named like Task04_Hippocampus, so nnU-Net's dataset id is not known; give --dataset-id."
            )
        dataset_id = int(parsed["id"])
    description = DatasetDescription(
        dataset_id=dataset_id,
        name=task.name,
        channels=task.channels,
        labels=task.labels,
        grids=((*task.channels, LABEL),),
        licence=task.licence,
        reference=task.reference,
        description=task.description,
    )
    return convert(_find_cases(folder, task, group_regex), description, [folder], options or ConversionOptions())


def _read_task(folder: Path) -> _Task:
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(f"{folder} has no dataset.json. Give the extracted TaskXX_Name folder of the Decathlon itself.")
    try:
        content = json.loads(path.read_text())
        channels = tuple(name for _, name in sorted(content["modality"].items(), key=lambda item: int(item[0])))
        labels = {str(name): int(value) for value, name in content["labels"].items()}
        listed = [
            tuple(Path(entry["image"] if isinstance(entry, dict) else entry).name for entry in content.get(part, ()))
            for part in ("training", "test")
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a Decathlon dataset.json ({type(error).__name__}: {error}); it needs `modality` and `labels`, each "
            "from number to name."
        ) from error
    if labels.get("background") != 0 or sorted(labels.values()) != list(range(len(labels))):
        raise DataError(
            f"{path}: nnU-Net needs background as label 0 and the others as 1, 2, 3, ...; found {sorted(labels.values())}."
        )
    if not channels or len(set(channels)) != len(channels) or LABEL in channels:
        raise DataError(f"{path}: the channel names under `modality` must differ from each other and from `label`.")
    parsed = _TASK.fullmatch(folder.name)
    name = parsed["name"] if parsed else re.sub(r"\W+", "", str(content.get("name", "")))
    if not name:
        raise DataError(f"{path} gives no name, and the folder's is not like Task04_Hippocampus; add `name` to it.")
    return _Task(
        name=name,
        channels=channels,
        labels=dict(labels),
        licence=str(content.get("licence") or content.get("license") or "not stated in the task's dataset.json"),
        reference=str(content.get("reference") or "http://medicaldecathlon.com"),
        description=str(content.get("description") or name),
        training=listed[0],
        test=listed[1],
    )


def _find_cases(folder: Path, task: _Task, group_regex: str | None) -> list[Case]:
    images = _by_stem(folder / "imagesTr", task.training)
    labels = _by_stem(folder / "labelsTr", ())
    tests = _by_stem(folder / "imagesTs", task.test)
    if not images:
        raise DataError(f"{folder / 'imagesTr'} holds no NIfTI files. Is the download extracted?")
    patients = groups_by_regex(sorted({*images, *labels, *tests}), group_regex) if group_regex else {}
    cases = []
    for name in sorted({*images, *labels}):
        case = _case(name, patients.get(name, name), folder / "imagesTr", images.get(name), labels.get(name), task)
        cases.append(case if name in labels else case.with_problem("label: missing in labelsTr"))
    for name, path in sorted(tests.items()):
        cases.append(_case(name, patients.get(name, name), folder / "imagesTs", path, None, task))
    return mark_duplicates(cases)


def _by_stem(folder: Path, listed: tuple[str, ...]) -> dict[str, Path]:
    """NIfTI files of ``folder`` by name without ending; those only ``listed`` too, to be found missing by the check."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {stem: path for path in paths if (stem := nifti_stem(path))}
    for name in listed:
        if stem := nifti_stem(Path(name)):
            found.setdefault(stem, folder / name)
    return found


def _case(name: str, patient: str, folder: Path, image: Path | None, label: Path | None, task: _Task) -> Case:
    if image is None:
        return Case(name, patient, folder, {}, label, ("image: missing in imagesTr",))
    several = len(task.channels) > 1
    channels = {channel: Volume(image, number if several else None) for number, channel in enumerate(task.channels)}
    return Case(name, patient, folder, channels, label)
