"""ISLES 2022 (stroke lesions in MRI): DWI, ADC and FLAIR, BIDS-like, in the two layouts in use.

Zenodo:    ``sub-X/ses-0001/{dwi/*_dwi,dwi/*_adc,anat/*_FLAIR}.nii.gz``
challenge: ``rawdata/sub-X/ses-0001/{*_dwi,*_adc,*_flair}.nii.gz``
both:      ``derivatives/sub-X/ses-0001/*_msk.nii.gz``

DWI, ADC and mask share one grid, FLAIR has its own. Hernandez Petzsche et al., "ISLES 2022: A multi-center magnetic resonance
imaging stroke lesion segmentation dataset", Scientific Data 2022, doi:10.1038/s41597-022-01875-5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from nnunet_kd.datasets.case import (
    ISLES2022_ID,
    LABEL,
    Case,
    ConversionOptions,
    DatasetDescription,
    Volume,
    add_file,
    folders_below,
    mark_duplicates,
    nifti_stem,
    readable_folders,
)
from nnunet_kd.datasets.conversion import ConversionSummary, convert
from nnunet_kd.errors import DataError, SettingsError

CHANNELS = {"DWI": "dwi", "ADC": "adc", "FLAIR": "flair"}
"""nnU-Net's channel names, in order, and the endings of the files (in any case)."""
MASK = "msk"
LABELS: dict[str, int | tuple[int, ...]] = {"background": 0, "lesion": 1}

GridName = Literal["dwi", "flair"]
GRIDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "dwi": (("DWI", "ADC", LABEL), ("FLAIR",)),
    "flair": (("FLAIR",), ("DWI", "ADC", LABEL)),
}

_SUBJECT = re.compile(r"sub-(?P<patient>[A-Za-z0-9]+)")
_SESSION = re.compile(r"ses-[A-Za-z0-9]+")


def convert_isles2022(
    sources: Sequence[str | Path],
    *,
    dataset_id: int = ISLES2022_ID,
    grid: GridName = "dwi",
    options: ConversionOptions | None = None,
) -> ConversionSummary:
    """Convert ISLES 2022 into ``nnUNet_raw/Dataset502_ISLES2022``, all channels of a case on one grid.

    Args:
        sources: the extracted download (the folder that holds ``derivatives`` beside the images); without any mask in it,
            its cases become ``imagesTs``.
        dataset_id: nnU-Net's number of the dataset.
        grid: ``dwi`` resamples FLAIR to the DWI, in whose space the challenge scores; ``flair`` resamples DWI and ADC
            (linear) and the mask (nearest neighbour) to the FLAIR. By the headers alone, without registration.
        options: see ``ConversionOptions``.

    Raises:
        BadCasesError: cases that do not hold, all listed; also those of which the images do not overlap in space.
        DataError: sources, target or splits do not hold.
        MissingRequirement: ``nnUNet_raw`` is not set.
    """
    folders = readable_folders([Path(source) for source in sources])
    return convert(find_cases(folders), describe(dataset_id, grid), folders, options or ConversionOptions())


def describe(dataset_id: int = ISLES2022_ID, grid: GridName = "dwi") -> DatasetDescription:
    """The dataset as ``dataset.json`` will have it.

    Raises:
        SettingsError: an unknown grid.
    """
    if grid not in GRIDS:
        raise SettingsError(f"--grid is {' or '.join(get_args(GridName))}, not {grid!r}.")
    return DatasetDescription(
        dataset_id=dataset_id,
        name="ISLES2022",
        channels=tuple(CHANNELS),
        labels=LABELS,
        grids=GRIDS[grid],
        licence="CC BY 4.0",
        reference="Hernandez Petzsche et al. 2022, https://doi.org/10.1038/s41597-022-01875-5; "
        "https://doi.org/10.5281/zenodo.7153326",
        description=f"ISLES 2022: acute and subacute stroke lesions; DWI, ADC and FLAIR on the grid of the {grid.upper()}",
    )


@dataclass
class _Session:
    """What was found of one session of one subject in one source."""

    folder: Path
    derived: bool
    """So far found below ``derivatives`` only."""
    problems: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def add(self, name: str, path: Path, kind: str) -> None:
        """Take ``path`` as this session's image of ``kind``, or note why it cannot be."""
        if not path.name.lower().startswith(f"{name.lower()}_"):
            self.problems.append(f"{path.name}: the name does not parse, expected {name}_{kind}")
        elif (problem := add_file(self.files, kind, path)) is not None:
            self.problems.append(problem)


def find_cases(folders: Sequence[Path]) -> list[Case]:
    """Every session of every subject below ``folders``, in either layout, empty ones too; nothing is read.

    Several sessions of one subject are several cases of one patient. Images other than DWI, ADC, FLAIR and mask are passed over.

    Raises:
        DataError: there is none, or a folder cannot be listed.
    """
    found = [case for folder in folders for case in _cases_of(folder)]
    if not found:
        raise DataError(
            f"No case was found in {', '.join(str(folder) for folder in folders)}: expected, for example, "
            "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz, or the same below rawdata. "
            "Is the download extracted?"
        )
    return mark_duplicates(found)


def _cases_of(source: Path) -> list[Case]:
    sessions: dict[str, _Session] = {}
    unparsed = []
    for folder, subfolders, files in folders_below(source):
        parts = folder.relative_to(source.parent).parts  # the source itself may be a subject's folder
        derived = "derivatives" in parts
        images = _images(folder, files, derived)
        subjects = [part for part in parts if _SUBJECT.fullmatch(part)]
        names = [part for part in parts if _SESSION.fullmatch(part)]
        if not subjects or not names:
            unparsed += [_unparsed(nifti_stem(path) or path.name, folder) for path, _ in images]
            if subjects and not subfolders and not images and not derived:
                unparsed.append(_unparsed(subjects[-1], folder))
            continue
        if derived and not images:
            continue
        name = f"{subjects[-1]}_{names[-1]}"
        session = sessions.setdefault(name, _Session(folder, derived))
        if session.derived and not derived:
            session.folder, session.derived = folder, False
        for path, kind in images:
            session.add(name, path, kind)
    has_masks = any(MASK in session.files for session in sessions.values())
    return [_case(name, session, has_masks) for name, session in sorted(sessions.items())] + unparsed


def _images(folder: Path, files: Sequence[str], derived: bool) -> list[tuple[Path, str]]:
    """Images and masks with their kind, which is the file name's last part; below ``derivatives`` only masks."""
    found = []
    for name in files:
        kind = (nifti_stem(Path(name)) or "").rpartition("_")[2].lower()
        if kind == MASK or (kind in CHANNELS.values() and not derived):
            found.append((folder / name, kind))
    return found


def _case(name: str, session: _Session, has_masks: bool) -> Case:
    subject, _, _ = name.partition("_")
    channels = {channel: Volume(session.files[kind]) for channel, kind in CHANNELS.items() if kind in session.files}
    problems = list(session.problems)
    if has_masks and MASK not in session.files:
        problems.append("mask: missing, though other cases of this source have one")
    if not channels:
        problems.append("DWI, ADC, FLAIR: missing")
    return Case(name, subject, session.folder, channels, session.files.get(MASK), tuple(problems))


def _unparsed(name: str, folder: Path) -> Case:
    problem = "the path does not parse: expected folders sub-<name>/ses-<number>"
    return Case(name, name, folder, {}, None, (problem,))
