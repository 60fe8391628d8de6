"""Which files make a case, where its segmentation goes, and what is wrong with them before anything is computed."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_kd_runtime.counts import counted
from nnunet_kd_runtime.description import Model
from nnunet_kd_runtime.errors import DataError, MissingRequirement, SettingsError
from nnunet_kd_runtime.readers import READERS, read_case

COLOURS = "NaturalImage2DIO"
"""The reader whose files may hold several channels."""
IMAGE_ENDINGS = sorted(
    {ending for formats in READERS.values() for ending in formats}
    | {".hdr", ".img", ".gz", ".nhdr", ".dcm", ".jpg", ".jpeg", ".npz"},
    key=len,
    reverse=True,
)
"""What nobody calls a folder; the longest first, so that ``.nii.gz`` is not told as ``.gz``."""


@dataclass(frozen=True)
class Case:
    """One image to segment.

    Attributes:
        name: the output's name without ending.
        images: one file a channel, in the channels' order.
        output: the segmentation's file.
    """

    name: str
    images: tuple[Path, ...]
    output: Path


def find_cases(inputs: Sequence[Path], output: Path, model: Model) -> list[Case]:
    """The cases in folders and files.

    Args:
        inputs: folders of ``CASE_0000.ending`` files, such files, or (of a model with one channel) files of any name. Of a
            case with several channels ``CASE_0000.ending`` alone is enough: the others are looked for beside it. Files
            without channel numbers, as many as the model has channels, are one case in their order; but pictures that hold
            all channels in their colours are a case each.
        output: a folder; for one case also a file with the model's ending.
        model: gives channels and file ending.

    Raises:
        SettingsError: the output is a file of another ending, or one file for several cases.
        DataError: no images, DICOM, another file ending, channels missing or too many, two cases of one name, or an image would
            be overwritten.
    """
    ending, channels = model.file_ending, len(model.channels)
    _check_output(output, ending)
    files: list[Path] = []
    for path in inputs:
        files += _files_of(path, ending)
    for path in files:
        _check_file(path, ending)
    numbered = {path: re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending)) for path in files}
    groups: defaultdict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    if 1 < channels == len(files) and not any(numbered.values()) and not _holds_all_channels(files[0], model):
        groups[files[0].parent, files[0].name.removesuffix(ending)] = dict(enumerate(files))
    else:
        for path, match in numbered.items():
            name, number = (match[1], int(match[2])) if match else (path.name.removesuffix(ending), 0)
            other = groups[path.parent, name].setdefault(number, path)
            if other != path:
                raise DataError(
                    f"{other} and {path.name} would both be channel {number:04d} of case {name}. Give one of them, or rename it."
                )
    cases = []
    for (folder, name), found in groups.items():
        if len(found) < channels and 0 in found and numbered[found[0]]:
            for number in range(channels):
                beside = folder / f"{name}_{number:04d}{ending}"
                if beside.is_file():
                    found.setdefault(number, beside)
        _check_channels(name, found, model)
        cases.append(Case(name, tuple(found[number] for number in sorted(found)), output / f"{name}{ending}"))
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"several inputs are named {twice[0]}: their segmentations would have one name. Run them apart."
        )
    if output.name.endswith(ending) and not output.is_dir():
        if len(cases) > 1:
            raise SettingsError(f"-o {output} is a file, but there are {len(cases)} cases. Give a folder.")
        cases = [Case(output.name.removesuffix(ending), cases[0].images, output)]
    for case in cases:
        same = [path for path in case.images if case.output.exists() and case.output.samefile(path)]
        if same:
            raise DataError(
                f"the segmentation would be written over the image {same[0]}. Choose another place with -o."
            )
    return cases


def _holds_all_channels(path: Path, model: Model) -> bool:
    """Whether a picture in colours is a case by itself."""
    return model.reader == COLOURS and len(read_case(model.reader, model.file_ending, [path]).array) == len(
        model.channels
    )


def _check_output(output: Path, ending: str) -> None:
    """Neither a file that is there, nor a name that is meant to be an image of another format; and it can be written."""
    folder = output if output.is_dir() or not output.name.endswith(ending) else output.parent
    existing = next((place for place in (folder, *folder.absolute().parents) if os.path.exists(place)), folder)
    if not (existing.is_dir() and os.access(existing, os.W_OK)) and not (existing == output and output.is_file()):
        raise MissingRequirement(f"-o {output}: {existing} is no folder that can be written to. Choose another place.")
    if output.is_dir() or output.name.endswith(ending):
        return
    other = next((known for known in IMAGE_ENDINGS if output.name.lower().endswith(known)), None)
    if other is not None:
        raise SettingsError(
            f"-o {output} ends in {other}, but this model's segmentations end in {ending}. Give such a name, or a folder."
        )
    if output.exists():
        raise SettingsError(
            f"-o {output} is a file that is there already. Give a folder, or a name ending in {ending}."
        )


def _files_of(path: Path, ending: str) -> list[Path]:
    if not path.exists():
        raise DataError(f"the input {path} does not exist.")
    if path.is_file():
        return [path]
    names = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    found = [entry for entry in names if re.fullmatch(rf".+_\d{{4}}{re.escape(ending)}", entry.name)]
    if not found:
        for entry in names:
            _refuse_dicom(entry)
        examples = ", ".join(entry.name for entry in names[:3])
        raise DataError(
            f"{path} holds no images named CASE_0000{ending} (four digits for the channel, and the ending of the model's "
            f"training data). " + (f"It holds, for example: {examples}." if examples else "It is empty.")
        )
    return found


def _check_file(path: Path, ending: str) -> None:
    _refuse_dicom(path)
    if not path.name.endswith(ending):
        raise DataError(f"{path} does not end in {ending}, the ending of the model's training data.")


def _refuse_dicom(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(128)
        magic = file.read(4)
    if magic == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        raise DataError(
            f"{path} is DICOM, which this program does not read. Convert the series first, for example with dcm2niix "
            f"(github.com/rordenlab/dcm2niix): dcm2niix -z y -o OUT FOLDER."
        )


def _check_channels(name: str, found: dict[int, Path], model: Model) -> None:
    channels = model.channels
    if model.reader == COLOURS and sorted(found) == [0]:
        return
    missing = [number for number in range(len(channels)) if number not in found]
    if missing:
        number = missing[0]
        raise DataError(
            f"case {name} lacks channel {number} ({channels[number]}): {name}_{number:04d}{model.file_ending} is not there. "
            f"Found: {', '.join(path.name for path in found.values())}.{_numbered_cases(name, found, model)}"
        )
    extra = [path for number, path in sorted(found.items()) if number >= len(channels)]
    if extra:
        raise DataError(
            f"case {name} has {extra[0].name}, but the model takes {counted(len(channels), 'channel')} "
            f"({', '.join(channels)}).{_numbered_cases(name, found, model)}"
        )


def _numbered_cases(name: str, found: Collection[int], model: Model) -> str:
    """For people who number their cases with four digits, which count as channel numbers."""
    number = max(found)
    if len(model.channels) > 1 or not number:
        return ""
    own = f"{name}_{number:04d}"
    return (
        f" If these files are different cases, their numbers are taken for channel numbers. Then put the channel's number behind "
        f"every name: {own}_0000{model.file_ending} in the place of {own}{model.file_ending}."
    )
