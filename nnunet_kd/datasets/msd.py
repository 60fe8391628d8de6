"""Datasets in the layout of the Medical Segmentation Decathlon: ``TaskXX_Name`` with ``imagesTr``, ``labelsTr``, ``imagesTs``.

A case with several channels is one 4D file. Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications
2022, doi:10.1038/s41467-022-30695-9.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import join

from nnunet_kd.datasets.case import (
    LABEL,
    Case,
    ConversionOptions,
    DatasetDescription,
    Volume,
    add_file,
    mark_duplicates,
    nifti_stem,
    readable_folders,
)
from nnunet_kd.datasets.conversion import ConversionSummary, convert
from nnunet_kd.datasets.splits import groups_by_regex, groups_where_found
from nnunet_kd.errors import DataError, SettingsError

_TASK = re.compile(r"Task(?P<id>\d+)_(?P<name>\w+)")


@dataclass(frozen=True)
class _Task:
    """What ``dataset.json`` says; ``channels`` are told apart by their number where ``channel_names`` are the same."""

    name: str
    channels: tuple[str, ...]
    channel_names: tuple[str, ...]
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
            raise SettingsError(
                f"{folder.name} is not named like Task04_Hippocampus, so nnU-Net's dataset id is not known; give --dataset-id."
            )
        dataset_id = int(parsed["id"])
    description = DatasetDescription(
        dataset_id=dataset_id,
        name=task.name,
        channels=task.channels,
        channel_names=task.channel_names,
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
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte order mark
        names = tuple(name for _, name in sorted(content["modality"].items(), key=lambda item: int(item[0])))
        labels = {_label_name(int(value), str(name)): int(value) for value, name in content["labels"].items()}
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
            f"{path}: nnU-Net needs the label 0, called background, and the others as 1, 2, 3, ...; found "
            f"{', '.join(f'{value}: {name}' for name, value in labels.items())}. Correct `labels` there."
        )
    if not names:
        raise DataError(f"{path} names no channel under `modality`.")
    parsed = _TASK.fullmatch(folder.name)
    name = parsed["name"] if parsed else re.sub(r"\W+", "", str(content.get("name", "")))
    if not name:
        raise DataError(f"{path} gives no name, and the folder's is not like Task04_Hippocampus; add `name` to it.")
    return _Task(
        name=name,
        channels=_told_apart(names),
        channel_names=names,
        labels=dict(labels),
        licence=str(content.get("licence") or content.get("license") or "not stated in the task's dataset.json"),
        reference=str(content.get("reference") or "http://medicaldecathlon.com"),
        description=str(content.get("description") or name),
        training=listed[0],
        test=listed[1],
    )


def _label_name(value: int, name: str) -> str:
    """nnU-Net's own word for label 0 in whatever letters."""
    return "background" if value == 0 and name.strip().lower() == "background" else name


def _told_apart(names: tuple[str, ...]) -> tuple[str, ...]:
    """The channels' names, with their number where two have the same or one is the label's."""
    return tuple(
        f"{name} ({number:04d})" if names.count(name) > 1 or name == LABEL else name
        for number, name in enumerate(names)
    )


def _find_cases(folder: Path, task: _Task, group_regex: str | None) -> list[Case]:
    images, image_problems = _by_stem(folder / "imagesTr", task.training)
    labels, label_problems = _by_stem(folder / "labelsTr", ())
    tests, test_problems = _by_stem(folder / "imagesTs", task.test)
    if not images:
        raise DataError(f"{folder / 'imagesTr'} holds no NIfTI files. Is the download extracted?")
    _refuse_old_format(folder, task, images, labels)
    names = sorted({*images, *labels})
    patients = groups_by_regex(names, group_regex) if group_regex else {}
    # nothing depends on the patients of test cases but a warning about those that also have training cases
    patients |= groups_where_found(tests, group_regex) if group_regex else {}
    cases = []
    for name in names:
        case = _case(name, patients.get(name, name), folder / "imagesTr", images.get(name), labels.get(name), task)
        for kind, found in (("image", image_problems), ("label", label_problems)):
            if name in found:
                case = case.with_problem(f"{kind}{found[name]}")
        cases.append(case if name in labels else case.with_problem("label: missing in labelsTr"))
    for name, path in sorted(tests.items()):
        case = _case(name, patients.get(name, name), folder / "imagesTs", path, None, task)
        cases.append(case.with_problem(f"image{test_problems[name]}") if name in test_problems else case)
    return mark_duplicates(cases)


def _by_stem(folder: Path, listed: tuple[str, ...]) -> tuple[dict[str, Path], dict[str, str]]:
    """NIfTI files of ``folder`` by name without ending, and what is wrong with names that two have.

    Those only ``listed`` are there too, to be found missing by the check.
    """
    found: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (stem := nifti_stem(path)) and (problem := add_file(found, stem, path)):
            problems[stem] = problem.removeprefix(stem)
    for name in listed:
        if stem := nifti_stem(Path(name)):
            found.setdefault(stem, folder / name)
    return found, problems


def _refuse_old_format(folder: Path, task: _Task, images: dict[str, Path], labels: dict[str, Path]) -> None:
    """nnU-Net v1's raw data: the Decathlon's layout, but every channel in a file of its own, with its number."""
    stems = [stem for stem, path in images.items() if path.exists()]  # its dataset.json lists names without the number
    numbered = [re.fullmatch(r"(.+)_\d{4}", stem) for stem in stems]
    if labels and stems and all(match is not None and match[1] in labels for match in numbered):
        parsed = _TASK.fullmatch(folder.name)
        target = f"Dataset{int(parsed['id']) if parsed else 1:03d}_{task.name}"
        command = join(["nnUNetv2_convert_old_nnUNet_dataset", str(folder), target])
        raise DataError(
            f"the images in {folder / 'imagesTr'} have channel numbers ({stems[0]}), so this is raw data of nnU-Net "
            f"version 1, not the Decathlon's. Convert it with: {command}"
        )


def _case(name: str, patient: str, folder: Path, image: Path | None, label: Path | None, task: _Task) -> Case:
    if image is None:
        return Case(name, patient, folder, {}, label, ("image: missing in imagesTr",))
    several = len(task.channels) > 1
    channels = {channel: Volume(image, number if several else None) for number, channel in enumerate(task.channels)}
    return Case(name, patient, folder, channels, label)
