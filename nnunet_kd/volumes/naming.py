"""Which files belong to a case, by their names alone: ``CASE_0000.ending`` for images, ``CASE.ending`` for segmentations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

NIFTI_ENDINGS = (".nii.gz", ".nii")


def is_hidden(path: Path) -> bool:
    """Whether programs leave such files behind unasked: ``._x.nii.gz`` of macOS, and all that begin with a dot."""
    return path.name.startswith(".")


def volumes_in(folder: Path, ending: str) -> list[Path]:
    """Files of a folder with an ending, by name; hidden ones and folders are passed over."""
    return sorted(
        path for path in folder.iterdir() if path.name.endswith(ending) and not is_hidden(path) and not path.is_dir()
    )


def segmentations_in(folder: Path, ending: str) -> dict[str, Path]:
    """Segmentations by case."""
    return {path.name.removesuffix(ending): path for path in volumes_in(folder, ending)}


def images_in(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    """Images by case and channel number; files without a channel number are passed over."""
    found: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for path in volumes_in(folder, ending):
        if (numbered := split_channel(path, ending)) is not None:
            name, channel = numbered
            found[name][channel] = path
    return dict(found)


def split_channel(path: Path, ending: str) -> tuple[str, int] | None:
    """Case and channel of ``CASE_0000.ending``; ``None`` for another name."""
    match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending), flags=re.DOTALL)
    return (match[1], int(match[2])) if match and path.name.endswith(ending) else None


def channel_problem(name: str, found: Collection[int], channels: Sequence[str], ending: str) -> str | None:
    """What is wrong with a case's channel numbers, which must be 0, 1, 2, ...; ``None``: nothing.

    One file with number 0 may hold all channels; whether it does, only reading it tells.

    Args:
        name: the case.
        found: its channel numbers.
        channels: names of the model's channels, in order.
        ending: of the files.
    """
    wanted = range(len(channels))
    if sorted(found) in ([*wanted], [0]):
        return None
    missing = [
        f"{name}_{number:04d}{ending} ({channels[number]}) is missing" for number in wanted if number not in found
    ]
    surplus = [f"{name}_{number:04d}{ending} is one too many" for number in sorted(found) if number not in wanted]
    listed = ", ".join(f"{number:04d} {channel}" for number, channel in enumerate(channels))
    return f"case {name}: {'; '.join(missing + surplus)}. The model takes the channels {listed}."


def numbered_cases(cases: Mapping[str, Collection[int]], channels: Sequence[str], ending: str) -> str:
    """A sentence for people who number their cases with four digits, which count as channel numbers; empty: nobody did.

    Args:
        cases: channel numbers that were found, by name.
        channels: of the model; with several, other numbers are channels that are missing or too many.
        ending: of the files.
    """
    name, number = next(((name, max(found)) for name, found in cases.items() if max(found) > 0), ("", 0))
    if len(channels) > 1 or not number:
        return ""
    own = f"{name}_{number:04d}"
    return (
        f" If these files are different cases, their numbers are taken for channel numbers. Then put the channel's number behind "
        f"every name: {own}_0000{ending} in the place of {own}{ending}."
    )


def shadow_of(path: Path) -> Path | None:
    """The ``x.nii`` beside ``x.nii.gz``, of which ITK takes the voxels when it is asked for ``x.nii.gz``; else ``None``."""
    if not path.name.endswith(".nii.gz"):
        return None
    other = path.with_name(path.name.removesuffix(".gz"))
    return other if other.is_file() else None


def shadowed_by(path: Path) -> Path | None:
    """The ``x.nii.gz`` beside ``x.nii``, in whose place ITK reads ``x.nii``; else ``None``."""
    other = path.with_name(f"{path.name}.gz")
    return other if path.name.endswith(".nii") and other.is_file() else None
