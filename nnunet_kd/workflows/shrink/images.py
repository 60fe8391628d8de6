"""The images, looked at before anything is computed: whole, of the model's channels, and of its kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.labels import read_labels
from nnunet_kd.evaluation.pairs import apart
from nnunet_kd.inference.cases import check_headers
from nnunet_kd.inference.image_folders import (
    ImageCase,
    check_numbers,
    ending_of,
    find_images,
    readable_endings,
    refuse_two_files,
)
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.system.counts import some
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.reading import (
    check_alone,
    header,
    read_images,
    read_segmentation,
    whole_numbers,
)
from nnunet_kd.volumes.wholeness import check_whole
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.signs import GEOMETRY, strange_geometry, strange_intensities, strange_texture

FEWEST = 5
"""Images; one of them is kept aside."""
LOOKED_AT = 40
"""Images whose intensities are read for the comparison with the model's training data, evenly spread."""
SHOWN = 5


@dataclass(frozen=True)
class SeenImage:
    """What was seen of one image.

    Attributes:
        shape: ``(Z, Y, X)`` voxels, in the file's axes.
        spacing: likewise, in mm.
        grid: of its voxels; ``None`` where the format has none.
        looked_into: whether its intensities were read, too; of many images only some are.
        signs: why it is not of the model's kind, by what is strange, in figures.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    grid: Grid | None = None
    looked_into: bool = True
    signs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Images:
    """The images of a folder, checked.

    Attributes:
        cases: by name.
        labels: files, by case; of those that have any.
        seen: by case.
    """

    cases: Mapping[str, ImageCase]
    labels: Mapping[str, Path]
    seen: Mapping[str, SeenImage]

    @property
    def files(self) -> list[Path]:
        """Of all images."""
        return [path for case in self.cases.values() for path in case.images]

    def signs(self) -> dict[str, list[str]]:
        """Cases that are not of the model's kind, by what is strange."""
        found: dict[str, list[str]] = {}
        for name, image in self.seen.items():
            for what in image.signs:
                found.setdefault(what, []).append(name)
        return found

    def warnings(self) -> list[str]:
        """One sentence for everything that is strange, with the figures of the first case."""
        told = []
        for what, names in self.signs().items():
            example = self.seen[names[0]].signs[what]
            of = len(self.cases) if what in GEOMETRY else len(self._looked_into())
            told.append(f"{what} of {len(names)} of {of} images: {example} ({some(names)}).")
        return told

    @property
    def foreign(self) -> bool:
        """Whether more than half of the images are not of the model's kind, of those that were looked into."""
        looked_into = self._looked_into()
        return 2 * sum(1 for image in looked_into if image.signs) > len(looked_into)

    def _looked_into(self) -> list[SeenImage]:
        return [image for image in self.seen.values() if image.looked_into]

    def check_labels_fit(self, teacher: Teacher) -> None:
        """Raise a DataError for labels that cannot be read, lie on another grid, or hold unknown values."""
        if not self.labels:
            return
        known = read_labels(teacher.dataset_json, teacher.model.folder / "dataset.json")
        reader = teacher.reader
        problems = []
        for name, path in self.labels.items():
            array, _ = read_segmentation(path, reader)
            values, _ = whole_numbers(array)
            strange = [value for value in np.unique(values).tolist() if value not in known.known | {known.ignore}]
            if strange:
                problems.append(f"{path.name} holds {', '.join(f'{value:g}' for value in strange[:3])}")
            elif array.shape[0] != 1:
                problems.append(f"{path.name} holds {array.shape[0]} volumes instead of one")
            elif tuple(array.shape[1:]) != self.seen[name].shape:
                problems.append(
                    f"{path.name} has {_times(array.shape[1:])} voxels and its image {_times(self.seen[name].shape)}"
                )
            elif differences := self._differences(name, path, reader):
                problems.append(f"{path.name} and its image differ in {'; '.join(differences)}")
        if problems:
            raise DataError(
                f"{len(problems)} label files do not fit: {'; '.join(problems[:SHOWN])}. The model knows the labels "
                f"{', '.join(map(str, sorted(known.known)))}."
            )

    def _differences(self, name: str, path: Path, reader: BaseReaderWriter) -> list[str]:
        found, own = header(path, reader), self.seen[name].grid
        return [] if found is None or found.grid is None or own is None else apart(found.grid, own)[1]


def look_at(folder: Path, labels: Path | None, teacher: Teacher, show: Any) -> Images:
    """Find the images, and check everything about them that reading can tell.

    Args:
        folder: with the images.
        labels: with segmentations of some of them; ``None``: there are none.
        teacher: that they are for.
        show: told how many were looked at, of how many, and which is next.

    Raises:
        DataError: fewer than :data:`FEWEST`, one cannot be read, has other channels, or a label file that does not fit.
    """
    reader, dataset = teacher.reader, teacher.dataset_json
    found = find_images(folder.expanduser(), dataset, reader)
    if len(found) < FEWEST:
        raise DataError(
            f"{folder} holds {len(found)} images ({some([case.name for case in found])}), but at least {FEWEST} are needed: "
            f"one of them is kept aside."
        )
    cases = {case.name: case for case in found}
    labelled = _labels_of(labels, cases, teacher)
    sampled = {found[place].name for place in np.linspace(0, len(found) - 1, min(LOOKED_AT, len(found))).astype(int)}
    seen = {}
    for place, case in enumerate(found):
        show(place, len(found), case.name)
        seen[case.name] = _look(case, teacher, channel_names(dataset), case.name in sampled)
    show(len(found), len(found), "")
    images = Images(cases, labelled, seen)
    images.check_labels_fit(teacher)
    return images


def _labels_of(folder: Path | None, cases: Mapping[str, ImageCase], teacher: Teacher) -> dict[str, Path]:
    if folder is None:
        return {}
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise DataError(
            f"--labels: the folder {folder} {what}. Give a folder of segmentations called as the cases are."
        )
    endings = readable_endings(str(teacher.dataset_json["file_ending"]), teacher.reader)
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if (ending := ending_of(path, endings)) is not None and (name := path.name.removesuffix(ending)) in cases:
            found.setdefault(name, []).append(path)
    refuse_two_files(folder, found)
    if not found:
        raise DataError(
            f"--labels: {folder} has no segmentation of any image. It needs files called as the cases are: "
            f"{next(iter(cases))}{endings[0]}."
        )
    return {name: path for name, (path,) in found.items()}


def _look(case: ImageCase, teacher: Teacher, channels: Sequence[str], with_intensities: bool) -> SeenImage:
    reader = teacher.reader
    for path in case.images:
        check_alone(path, reader)
        check_whole(path)
    check_headers(case.predicted_to(Path("unused"), ""), channels, reader)
    first = header(case.images[0], reader)
    array = None
    grid = None if first is None else first.grid
    if with_intensities or grid is None:
        array, properties = read_images(case.images, reader)
        if array.shape[0] != len(channels):
            raise DataError(
                f"case {case.name} has {array.shape[0]} channels, but the model takes {len(channels)} ({', '.join(channels)})."
            )
        shape = tuple(int(size) for size in array.shape[1:])
        spacing = tuple(float(step) for step in properties["spacing"])
    else:
        shape, spacing = grid.size[::-1], grid.spacing[::-1]
    check_numbers(case, reader)
    signs = strange_geometry(shape, spacing, teacher.plans)
    if array is not None and with_intensities:
        signs |= strange_intensities(array, teacher.plans, channels) | strange_texture(array, channels)
    return SeenImage(shape, spacing, grid, with_intensities, signs)


def bytes_needed(images: Images, teacher: Teacher) -> int:
    """Upper bound of what the work takes on disk: arrays, segmentations and soft labels, all uncompressed."""
    plans = teacher.plans
    manager = PlansManager(plans)
    target = list(manager.get_configuration(teacher.configuration).spacing)
    heads = manager.get_label_manager(teacher.dataset_json).num_segmentation_heads
    channels = len(channel_names(teacher.dataset_json))
    total = 0
    for image in images.seen.values():
        spacing = [image.spacing[axis] for axis in plans["transpose_forward"]]
        wanted = target if len(target) == len(spacing) else [spacing[0], *target]
        scale = math.prod(own / goal for own, goal in zip(spacing, wanted, strict=True))
        voxels = math.prod(image.shape)
        total += round(voxels * scale) * (4 * channels + 2 + heads) + 2 * voxels
    return total


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
