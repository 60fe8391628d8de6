"""Folders of images as people have them: in nnU-Net's naming, or one file a case of any name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_kd.errors import DataError
from nnunet_kd.inference.cases import InputCase
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.nnunet.readers import library_of
from nnunet_kd.system.counts import counted
from nnunet_kd.volumes.naming import NIFTI_ENDINGS, channel_problem, is_hidden, numbered_cases, split_channel
from nnunet_kd.volumes.reading import voxels_without_number

SHOWN = 5


@dataclass(frozen=True)
class ImageCase:
    """One case's image.

    Attributes:
        name: of the case.
        images: one file a channel, in the channels' order, or one file with all channels.
    """

    name: str
    images: tuple[Path, ...]

    def predicted_to(self, folder: Path, ending: str) -> InputCase:
        """The same with a place for its segmentation."""
        return InputCase(self.name, self.images, folder / f"{self.name}{ending}")


def find_images(folder: Path, dataset_json: Mapping[str, Any], reader: BaseReaderWriter) -> list[ImageCase]:
    """The cases of a folder, by name.

    If every file is called ``CASE_0000.ending``, cases are grouped by that; ``scan_2019.ending`` is no channel 2019 of a model
    with one channel. Otherwise every file is a case of its own, which must then hold all channels. Files of any ending that the
    model's reader takes count.

    Args:
        folder: with the images; its subfolders are not looked at.
        dataset_json: of the model.
        reader: of the model's plan.

    Raises:
        DataError: no such folder, no images, channels missing, or two files for one case; names them.
    """
    channels, ending = channel_names(dataset_json), str(dataset_json["file_ending"])
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise DataError(f"the folder of images {folder} {what}. Give a folder with one image a case.")
    endings = readable_endings(ending, reader)
    files = [(path, own) for path in sorted(folder.iterdir()) if (own := ending_of(path, endings)) is not None]
    if not files:
        there = ", ".join(path.name for path in sorted(folder.iterdir())[:3]) or "nothing"
        raise DataError(
            f"{folder} holds no image that the model's reader ({type(reader).__name__}) takes: {', '.join(endings)}. It holds "
            f"{there}."
        )
    numbered = {path: split_channel(path, own) for path, own in files}
    named = {path: found for path, found in numbered.items() if found is not None}
    grouped = len(named) == len(files) and (len(channels) > 1 or _all_have_channel_0(named.values()))
    if grouped:
        cases = _grouped(named, channels, ending)
    elif len(channels) > 1 and named:
        other = next(path.name for path, _ in files if path not in named)
        raise DataError(
            f"{folder}: some files are named CASE_0000 and so on, as nnU-Net names channels, and others are not, for example "
            f"{other}. The model takes {_listed_channels(channels)}. Name all of them so."
        )
    else:
        if library_of(reader) is None:
            raise DataError(
                f"{folder}: the model's reader, {type(reader).__name__}, needs nnU-Net's names, CASE_0000{ending}. "
                f"{files[0][0].name} is not one."
            )
        cases = {}
        for path, own in files:
            cases.setdefault(path.name.removesuffix(own), []).append(path)
    _check_names(folder, cases, grouped)
    return [ImageCase(name, tuple(paths)) for name, paths in sorted(cases.items())]


def readable_endings(ending: str, reader: BaseReaderWriter) -> tuple[str, ...]:
    """File endings that a model's images may have: its training data's first, then what its reader reads, the longest first."""
    more = NIFTI_ENDINGS if ending in NIFTI_ENDINGS else ()
    others = sorted({*more, *reader.supported_file_endings} - {ending}, key=lambda one: (-len(one), one))
    return (ending, *others)


def ending_of(path: Path, endings: Sequence[str]) -> str | None:
    """Which of these a file has, whatever the case of letters; ``None``: none, or it is hidden or a folder."""
    if is_hidden(path) or path.is_dir():
        return None
    found = next((ending for ending in endings if path.name.lower().endswith(ending.lower())), None)
    return None if found is None or len(path.name) == len(found) else path.name[-len(found) :]


def _all_have_channel_0(found: Iterable[tuple[str, int]]) -> bool:
    pairs = list(found)
    return {name for name, _ in pairs} == {name for name, channel in pairs if channel == 0}


def _grouped(numbered: Mapping[Path, tuple[str, int]], channels: Sequence[str], ending: str) -> dict[str, list[Path]]:
    groups: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for path, (name, channel) in numbered.items():
        if channel in groups[name]:
            raise DataError(
                f"{groups[name][channel].name} and {path.name} are both channel {channel} of case {name}. Keep one of them."
            )
        groups[name][channel] = path
    problems = [channel_problem(name, files, channels, ending) for name, files in groups.items()]
    told = [problem for problem in problems if problem is not None]
    if told:
        more = f" {len(told) - SHOWN} more cases have such problems." if len(told) > SHOWN else ""
        raise DataError(" ".join(told[:SHOWN]) + more + numbered_cases(groups, channels, ending))
    return {name: [path for _, path in sorted(files.items())] for name, files in groups.items()}


def _check_names(folder: Path, cases: Mapping[str, Sequence[Path]], grouped: bool) -> None:
    if not grouped:
        refuse_two_files(folder, cases)
    for name, paths in cases.items():
        if not grouped and f"{name}_0000" in cases:
            both = f"{paths[0].name} and {cases[f'{name}_0000'][0].name}"
            raise DataError(f"{folder}: {both} may be the same image. Keep one of them, or give them other names.")
        if name.endswith("_seg"):
            raise DataError(f"{paths[0]}: nnU-Net keeps names that end in _seg for segmentations. Rename that file.")


def refuse_two_files(folder: Path, cases: Mapping[str, Sequence[Path]]) -> None:
    """Raise a DataError if a folder has several files for one case, of which one would be taken unasked."""
    for name, paths in cases.items():
        if len(paths) > 1:
            raise DataError(
                f"{folder} has two files for case {name}: {', '.join(path.name for path in paths)}. Keep one of them."
            )


def check_numbers(case: ImageCase, reader: BaseReaderWriter) -> None:
    """Raise a DataError if stored voxels are NaN or infinite; some readers replace them without a word, others do not."""
    if count := sum(voxels_without_number(path, reader) for path in case.images):
        raise DataError(
            f"case {case.name}: {counted(count, 'voxel')} NaN or infinite. Replace them by numbers, for example 0, or take the "
            f"image out."
        )


def _listed_channels(channels: Sequence[str]) -> str:
    return ", ".join(f"{number:04d} {channel}" for number, channel in enumerate(channels))
