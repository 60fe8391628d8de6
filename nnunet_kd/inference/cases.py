"""Which images make a case, where its segmentation goes, and what is wrong with it before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.nnunet.readers import library_of
from nnunet_kd.system.counts import counted, some
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.naming import NIFTI_ENDINGS, channel_problem, images_in, numbered_cases, split_channel
from nnunet_kd.volumes.reading import Header, check_alone, header

_VOLUME_ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".png", ".bmp", ".jpg", ".tif", ".tiff")
"""A new output with one of these is meant to be a file."""


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

    @property
    def ending(self) -> str:
        """Of the output."""
        return self.output.name.removeprefix(self.name)


def find_cases(inputs: Sequence[Path], output: Path, dataset_json: Mapping[str, Any]) -> list[InputCase]:
    """The cases of a folder, or of single files.

    Args:
        inputs: a folder of ``CASE_0000.ending`` files, or one case's files in the channels' order. Of a case with several
            channels, ``CASE_0000.ending`` alone is enough: the others are looked for beside it.
        output: a folder; for single files also a file with the dataset's ending (of NIfTI: with either).
        dataset_json: of the model; gives channels and file ending.

    Raises:
        SettingsError: input and output do not go together.
        DataError: no images, files or channels missing or too many, another file ending, or an image would be overwritten.
    """
    ending = str(dataset_json["file_ending"])
    channels = channel_names(dataset_json)
    absent = [path for path in inputs if not path.exists()]
    if absent:
        raise DataError(f"the input {absent[0]} does not exist.")
    file_ending = _file_ending(output, ending)
    if len(inputs) == 1 and inputs[0].is_dir():
        if file_ending is not None:
            raise SettingsError(f"-i {inputs[0]} is a folder, so -o must be one too, got {output}.")
        groups = _group(inputs[0], ending)
        cases = [
            InputCase(name, tuple(path for _, path in sorted(files.items())), output / f"{name}{ending}")
            for name, files in groups.items()
        ]
        problems = [channel_problem(name, files, channels, ending) for name, files in groups.items()]
        advice = numbered_cases(groups, channels, ending)
    else:
        images = _files_of_one_case(inputs, ending, len(channels))
        numbered = split_channel(images[0], ending)
        name = numbered[0] if numbered else images[0].name.removesuffix(ending)
        place = output / f"{name}{ending}" if file_ending is None else output
        cases = [InputCase(place.name.removesuffix(file_ending or ending), images, place)]
        problems = [_numbers_problem(images, channels, ending)]
        advice = numbered_cases({} if numbered is None else {name: [numbered[1]]}, channels, ending)
    found = [problem for problem in problems if problem is not None]
    if found:
        more = f" Likewise {counted(len(found) - 5, 'more case')}." if len(found) > 5 else ""
        raise DataError(" ".join(found[:5]) + more + advice)
    for case in cases:
        _refuse_to_overwrite_images(case)
    return cases


def check_headers(case: InputCase, channels: Sequence[str], reader: BaseReaderWriter, segmented: bool = True) -> None:
    """Compare the channels' headers, for readers whose files have one.

    Args:
        case: whose images.
        channels: names of the model's.
        reader: of the model's plan.
        segmented: whether a segmentation of them will be written, which ITK's files of four dimensions have none of.

    Raises:
        DataError: a file has another of its name beside it, its header cannot be read, it has more dimensions than its reader
            takes to a segmentation, a channel lies on another grid than the first, or the files of the case do not hold as many
            channels as the model takes.
    """
    for path in case.images:
        check_alone(path, reader)
    headers = [header(path, reader) for path in case.images]
    counts = [1 if found is None else found.channels for found in headers]
    if sum(counts) != len(channels):
        held = ", ".join(f"{path.name} holds {count}" for path, count in zip(case.images, counts, strict=True))
        raise DataError(
            f"case {case.name} has {counted(sum(counts), 'channel')}, but the model takes {len(channels)} "
            f"({', '.join(channels)}): {held}."
            + (" A fourth channel of a picture is its transparency: save it as RGB." if counts == [4] else "")
        )
    for path, found in zip(case.images, headers, strict=True):
        if found is not None and found.grid is not None:
            _check_dimensions(case, path, found, channels, reader, segmented)
    grids = [found.grid for found in headers if found is not None and found.grid is not None]
    for path, grid in zip(case.images, grids, strict=False):
        _compare(case, path, grid, grids[0])


def _check_dimensions(
    case: InputCase, path: Path, found: Header, channels: Sequence[str], reader: BaseReaderWriter, segmented: bool
) -> None:
    name = type(reader).__name__
    if found.components > 1:
        raise DataError(
            f"case {case.name}: {path.name} holds {found.components} numbers a voxel (vectors or colours). nnU-Net's {name} "
            f"takes one: split it into one file a channel."
        )
    nibabel = library_of(reader) == "nibabel"
    allowed = (3,) if nibabel else (2, 3) if segmented else (2, 3, 4)
    if found.dimensions in allowed:
        return
    if found.dimensions < 3:
        raise DataError(
            f"case {case.name}: {path.name} has {found.dimensions} dimensions; nnU-Net's {name} reads three."
        )
    files = some([f"{case.name}_{number:04d} ({channel})" for number, channel in enumerate(channels)])
    raise DataError(
        f"case {case.name}: {path.name} has {found.dimensions} dimensions. nnU-Net's {name} "
        f"{'reads three' if nibabel else 'writes no segmentation of such an image'}. Split it into one 3D file a channel, with "
        f"the same ending: {files}. In Python: SimpleITK.WriteImage(SimpleITK.ReadImage(OLD)[:, :, :, 0], NEW) writes the first."
    )


def _compare(case: InputCase, path: Path, grid: Grid, first: Grid) -> None:
    differences = grid.differences(first)
    if differences:
        raise DataError(
            f"case {case.name}: {path.name} lies on another grid than {case.images[0].name}: {'; '.join(differences)}. "
            f"All channels must be registered and resampled to one grid, as in training."
        )


def _file_ending(output: Path, ending: str) -> str | None:
    """The ending of an output that is meant to be a file; ``None`` for a folder."""
    if output.is_dir():
        return None
    allowed = NIFTI_ENDINGS if ending in NIFTI_ENDINGS else (ending,)
    for own in allowed:
        if output.name.endswith(own) and output.name != own:
            return own
    if output.name.lower().endswith(_VOLUME_ENDINGS):
        raise SettingsError(f"-o {output} must be a folder, or a file that ends in {' or '.join(allowed)}.")
    return None


def _group(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    groups = images_in(folder, ending)
    if not groups:
        others = sorted(path.name for path in folder.iterdir())[:3]
        raise DataError(
            f"{folder} holds no images named CASE_0000{ending} (four digits for the channel, and the ending of the model's "
            f"training data)." + (f" It holds, for example: {', '.join(others)}." if others else " It is empty.")
        )
    return groups


def _files_of_one_case(inputs: Sequence[Path], ending: str, channels: int) -> tuple[Path, ...]:
    folders = [path for path in inputs if path.is_dir()]
    if folders:
        raise SettingsError(
            f"give one folder, or the files of one case; got {len(inputs)} inputs, {folders[0]} is a folder."
        )
    wrong = [path for path in inputs if not path.name.endswith(ending)]
    if wrong:
        raise DataError(f"{wrong[0]} does not end in {ending}, the ending of the model's training data.")
    first = split_channel(inputs[0], ending)
    if len(inputs) == 1 and channels > 1 and first is not None and first[1] == 0:
        beside = images_in(inputs[0].parent, ending)[first[0]]
        return tuple(path for _, path in sorted(beside.items()))
    return tuple(inputs)


def _numbers_problem(images: Sequence[Path], channels: list[str], ending: str) -> str | None:
    """Channel numbers where all files of a case have them; else their order is the channels'."""
    numbered = [split_channel(path, ending) for path in images]
    names = {found[0] for found in numbered if found is not None}
    if None not in numbered and len(names) == 1:
        numbers = [found[1] for found in numbered if found is not None]
        problem = channel_problem(names.pop(), numbers, channels, ending)
        if problem is None and numbers != sorted(numbers):
            problem = f"{', '.join(path.name for path in images)}: give them in the order of their channel numbers."
        return problem
    if len(images) not in (1, len(channels)):
        return (
            f"{counted(len(images), 'file')} given for one case, but the model takes {counted(len(channels), 'channel')} "
            f"({', '.join(channels)}): {', '.join(path.name for path in images)}."
        )
    return None


def _refuse_to_overwrite_images(case: InputCase) -> None:
    same = [path for path in case.images if case.output.exists() and case.output.samefile(path)]
    if same:
        raise DataError(f"the segmentation would be written over the image {same[0]}. Choose another place with -o.")


def check_previous_stage(
    needed: str | None, cases: Sequence[InputCase], folder: Path | None, dataset_json: Mapping[str, Any]
) -> None:
    """Whether the first stage's segmentations are given where a model is the second stage of a cascade.

    Args:
        needed: the first stage's configuration; ``None``: the model is no second stage.
        cases: to predict.
        folder: with the segmentations.
        dataset_json: of the model; gives their ending.

    Raises:
        SettingsError: the folder lacks, or is given for another model.
        DataError: it has not all cases.
    """
    if needed is None:
        if folder is not None:
            raise SettingsError("--previous-stage is for cascades; this model is none.")
        return
    if folder is None:
        raise SettingsError(
            f"the model is the second stage of a cascade: predict with {needed} first and give that folder as --previous-stage."
        )
    ending = dataset_json["file_ending"]
    absent = [case.name for case in cases if not (folder / f"{case.name}{ending}").is_file()]
    if absent:
        raise DataError(f"{folder} has no segmentation of {', '.join(absent[:5])} ({counted(len(absent), 'case')}).")
