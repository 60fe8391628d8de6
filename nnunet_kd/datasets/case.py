"""What a converter finds (``Case``), what it knows about the dataset (``DatasetDescription``), and how users steer it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.volumes.naming import NIFTI_ENDINGS, is_hidden

BRATS2024_ID, ISLES2022_ID = 501, 502
"""nnU-Net's numbers of the datasets, where users choose no other."""
SKIPPED = "skipped.csv"
"""In the dataset's folder: bad cases that were left out."""
FOLDS = 5
"""Of a cross-validation, where users choose no other number."""
SEED = 12345
"""Of the shuffle before splits are made, likewise."""
LABEL = "label"
FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Volume:
    """One 3D image: a file, or one volume of a 4D file."""

    path: Path
    index: int | None = None
    """Which volume of a 4D file; ``None`` for a 3D file."""


@dataclass(frozen=True)
class Case:
    """One time point of one patient, as found; nothing has been read yet."""

    name: str
    """nnU-Net's case identifier."""
    patient: str
    """Cases of one patient stay on one side of every split."""
    folder: Path
    """Where the case was found, for reports."""
    channels: Mapping[str, Volume]
    """Image by channel name; a missing channel has no entry."""
    label: Path | None
    """Segmentation; ``None`` makes it a test case (``imagesTs``)."""
    problems: tuple[str, ...] = ()
    """What is already known to be wrong: a name that does not parse, a second copy."""

    def with_problem(self, problem: str) -> Case:
        """The same case with one more problem."""
        return replace(self, problems=(*self.problems, problem))

    def volumes(self) -> dict[str, Volume]:
        """The channels and, for training cases, ``LABEL``."""
        volumes = dict(self.channels)
        if self.label is not None:
            volumes[LABEL] = Volume(self.label)
        return volumes


@dataclass(frozen=True)
class DatasetDescription:
    """What ``dataset.json`` will say, and which images share a grid."""

    dataset_id: int
    name: str
    channels: tuple[str, ...]
    """In nnU-Net's order: ``_0000``, ``_0001``, ...; each once."""
    labels: Mapping[str, int | tuple[int, ...]]
    """Values by name; tuples are nnU-Net regions. Must contain ``background: 0``."""
    grids: tuple[tuple[str, ...], ...]
    """Channels (and ``LABEL``) that must share a grid. All others are resampled to the grid of the first group's first."""
    licence: str
    reference: str
    description: str
    regions_class_order: tuple[int, ...] | None = None
    channel_names: tuple[str, ...] | None = None
    """What ``dataset.json`` calls the channels, where that is not ``channels``: two CT phases are both called CT there."""

    def __post_init__(self) -> None:
        if not 1 <= self.dataset_id <= 999:
            raise SettingsError(
                f"nnU-Net numbers datasets from 1 to 999, not {self.dataset_id}; choose another --dataset-id."
            )

    @property
    def folder_name(self) -> str:
        """nnU-Net's name of the dataset, for example ``Dataset501_BraTS2024``."""
        return f"Dataset{self.dataset_id:03d}_{self.name}"

    @property
    def reference_channel(self) -> str:
        """The channel of which the grid becomes the case's."""
        return self.grids[0][0]

    @property
    def label_values(self) -> frozenset[int]:
        """Every value a segmentation may hold, background included."""
        values: set[int] = set()
        for value in self.labels.values():
            values.update((value,) if isinstance(value, int) else value)
        return frozenset(values)


def _default_processes() -> int:
    from nnunet_kd.nnunet.datasets import default_processes  # loads PyTorch

    return default_processes()


@dataclass(frozen=True)
class ConversionOptions:
    """How a conversion runs; the same for every dataset."""

    link: bool = False
    """Symlink the images that need no change instead of copying them."""
    processes: int = field(default_factory=_default_processes)
    """Worker processes; default: nnU-Net's own (``nnUNet_def_n_proc``, else 8), but at most one a core."""
    dry_run: bool = False
    """Check everything, write nothing."""
    skip_bad: bool = False
    """Leave bad cases out (``skipped.csv``) instead of stopping."""
    holdout: float | None = None
    """One split with this share of the patients in validation, instead of five folds."""
    seed: int = SEED
    """Of the shuffle before splitting."""


def nifti_stem(path: Path) -> str | None:
    """The file name without ``.nii`` or ``.nii.gz``; ``None`` for other files and those that nnU-Net's converters pass over."""
    if is_hidden(path) or path.name.startswith("_"):
        return None
    for ending in NIFTI_ENDINGS:
        if path.name.endswith(ending):
            return path.name[: -len(ending)]
    return None


def readable_folders(sources: list[Path]) -> list[Path]:
    """``sources``, absolute.

    Raises:
        DataError: one of them is not a folder, is given twice, or lies inside another.
    """
    problems = [f"{source} is not a folder" for source in sources if not source.is_dir()]
    resolved = [source.resolve() for source in sources]
    for position, source in enumerate(resolved):
        for other in resolved[:position]:
            if source == other or other in source.parents or source in other.parents:
                problems.append(f"{source} and {other} overlap")
    if not sources:
        problems.append("none was given")
    if problems:
        raise DataError(f"The source folders do not hold: {'; '.join(problems)}. Give each extracted download once.")
    return resolved


def folders_below(source: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """``source`` and every folder below it, by name, each with its subfolders and files; hidden and ``__MACOSX`` are left out.

    A folder that links lead to several times, such as a link back to the source, is listed once.

    Raises:
        DataError: a folder cannot be listed; passing it over would silently lose its cases.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be listed ({error.strerror}). Repair it, or its permissions."
        ) from error

    seen = {os.path.realpath(source)}
    for folder, subfolders, files in os.walk(source, followlinks=True, onerror=refuse):
        kept = []
        for name in sorted(name for name in subfolders if not name.startswith((".", "__"))):
            place = os.path.realpath(os.path.join(folder, name))
            if place not in seen:
                seen.add(place)
                kept.append(name)
        subfolders[:] = kept
        yield Path(folder), subfolders, sorted(files)


def add_file(files: dict[str, Path], kind: str, path: Path) -> str | None:
    """Take a file as a case's image of a kind, or say that there was one already: ``x.nii`` beside ``x.nii.gz``, say."""
    first = files.setdefault(kind, path)
    return None if first is path else f"{kind}: there are two, {first} and {path}"


def mark_duplicates(cases: list[Case]) -> list[Case]:
    """Give every case whose name was seen before a problem that says where; the first one stays as it is."""
    first: dict[str, Path] = {}
    marked = []
    for case in cases:
        if case.name in first:
            case = case.with_problem(f"the same case is also in {first[case.name]}")
        else:
            first[case.name] = case.folder
        marked.append(case)
    return marked
