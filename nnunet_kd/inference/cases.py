"""Which images make a case, where its segmentation goes, and what is wrong with it before anything is computed."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunet_kd.datasets.geometry import Grid
from nnunet_kd.errors import DataError
from nnunet_kd.system.names import check_name

_HEADER_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
"""Formats whose geometry SimpleITK reads from the header alone."""


@dataclass(frozen=True)
class InputCase:
    """One image to segment.

    Attributes:
        name: the output's name without ending.
        images: one file a channel, in the channels' order (or one file with all channels).
        output: the segmentation's file.
    """

    name: str
    images: tuple[Path, ...]
    output: Path


def find_cases(inputs: Sequence[Path], output: Path, dataset_json: Mapping[str, Any]) -> list[InputCase]:
    """The cases of a folder, or of single files.

    Args:
        inputs: a folder of ``CASE_0000.ending`` files, or one case's files in the channels' order. Of a case with several
            channels, ``CASE_0000.ending`` alone is enough: the others are looked for beside it.
        output: a folder; for single files also a file with the dataset's ending.
        dataset_json: of the model; gives channels and file ending.

    Raises:
        DataError: no images, files or channels missing or too many, another file ending.
    """
    ending = str(dataset_json["file_ending"])
    channels = list(dataset_json["channel_names"].values())
    absent = [path for path in inputs if not path.exists()]
    if absent:
        raise DataError(f"the input {absent[0]} does not exist.")
    if len(inputs) == 1 and inputs[0].is_dir():
        if output.name.endswith(ending):
            raise DataError(f"-i {inputs[0]} is a folder, so -o must be one too, got {output}.")
        groups = _group(inputs[0], ending)
        cases = [InputCase(name, files, output / f"{name}{ending}") for name, files in groups.items()]
    else:
        cases = [_single(inputs, output, ending, len(channels))]
    for case in cases:
        _check_channels(case, channels)
    return cases


def check_headers(case: InputCase, channels: int) -> None:
    """Compare the channels' headers, for formats that have one.

    Raises:
        DataError: a header cannot be read, a channel lies on another grid than the first, or one file of the case does not
            hold all channels.
    """
    grids: list[Grid] = []
    for path in case.images:
        if not path.name.endswith(_HEADER_ENDINGS):
            return
        check_name(path)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise DataError(f"{path} cannot be read as an image: the file is damaged or of another format.") from error
        volumes = reader.GetSize()[3] if reader.GetDimension() == 4 else 1
        if volumes * len(case.images) != channels:
            raise DataError(
                f"case {case.name} has {volumes * len(case.images)} channels, but the model takes {channels}: "
                f"{', '.join(image.name for image in case.images)}."
            )
        grids.append(Grid.of(reader))
        differences = grids[-1].differences(grids[0])
        if differences:
            raise DataError(
                f"case {case.name}: {path.name} lies on another grid than {case.images[0].name}: {'; '.join(differences)}. "
                f"All channels must be registered and resampled to one grid, as in training."
            )


def check_whole(path: Path) -> None:
    """Read a gzip file to its end and compare its checksum: SimpleITK fills up truncated ones with zeros, silently.

    Raises:
        DataError: it is truncated or damaged.
    """
    check_name(path)
    if path.suffix != ".gz":
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or incomplete ({error}). Copy it again.") from error


def _group(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            groups[match[1]].append(path)
    if not groups:
        others = sorted(path.name for path in folder.iterdir())[:3]
        raise DataError(
            f"{folder} holds no images named CASE_0000{ending} (four digits for the channel, and the ending of the model's "
            f"training data)." + (f" It holds, for example: {', '.join(others)}." if others else " It is empty.")
        )
    return {name: tuple(files) for name, files in groups.items()}


def _single(inputs: Sequence[Path], output: Path, ending: str, channels: int) -> InputCase:
    folders = [path for path in inputs if path.is_dir()]
    if folders:
        raise DataError(
            f"give one folder, or the files of one case; got {len(inputs)} inputs, {folders[0]} is a folder."
        )
    wrong = [path for path in inputs if not path.name.endswith(ending)]
    if wrong:
        raise DataError(f"{wrong[0]} does not end in {ending}, the ending of the model's training data.")
    stem = inputs[0].name.removesuffix(ending)
    numbered = re.fullmatch(r"(.+)_\d{4}", stem)
    name = numbered[1] if numbered else stem
    images = tuple(inputs)
    if len(images) == 1 and channels > 1 and stem.endswith("_0000"):
        images = _group(inputs[0].parent, ending)[name]
    if output.name.endswith(ending):
        return InputCase(output.name.removesuffix(ending), images, output)
    return InputCase(name, images, output / f"{name}{ending}")


def _check_channels(case: InputCase, channels: list[str]) -> None:
    """By the number of files; one file may hold all channels."""
    if len(case.images) not in (1, len(channels)):
        raise DataError(
            f"case {case.name} has {len(case.images)} files, but the model takes {len(channels)} channels "
            f"({', '.join(channels)}): {', '.join(path.name for path in case.images)}."
        )
