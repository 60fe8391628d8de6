"""Write one case into nnU-Net's folders so that a file is either whole or not there, and remember which cases are whole.

Every file is made in a temporary folder of the dataset and renamed into place. ``Journal`` is the dataset's
``conversion.jsonl``: one line per finished case, with what it was made from and how large its files are. A case counts as
finished only while both still hold, so files that a power cut emptied after the renaming are redone too.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunet_kd.datasets.case import FILE_ENDING, LABEL, Case, DatasetDescription, Volume
from nnunet_kd.datasets.geometry import resample, with_grid
from nnunet_kd.errors import MissingRequirement
from nnunet_kd.system.files import free_space
from nnunet_kd.volumes.grid import Grid
from nnunet_kd.volumes.wholeness import is_gzip

JOURNAL = "conversion.jsonl"
PARTIAL = ".partial-"


@dataclass(frozen=True)
class WrittenCase:
    """The journal's line on a finished case."""

    name: str
    made_from: list[Any]
    """What the files depend on: path, size and time of every source, and the way of conversion."""
    files: dict[str, int]
    """Size in bytes by path relative to the dataset folder."""
    empty_label: bool
    harmonised: int
    """Files of which the header was set to the reference channel's, to which it was equal within the tolerance."""
    patient: str = ""
    """Empty: an older version wrote the line."""


def targets(case: Case, description: DatasetDescription) -> dict[str, str]:
    """Where each volume of ``case`` goes, relative to the dataset folder."""
    images = "imagesTs" if case.label is None else "imagesTr"
    places = {
        channel: f"{images}/{case.name}_{number:04d}{FILE_ENDING}"
        for number, channel in enumerate(description.channels)
    }
    if case.label is not None:
        places[LABEL] = f"labelsTr/{case.name}{FILE_ENDING}"
    return places


def made_from(case: Case, description: DatasetDescription, link: bool) -> list[Any]:
    """What the written files of ``case`` depend on, as JSON has it (lists, no tuples)."""
    sources = []
    for name, volume in sorted(case.volumes().items()):
        state = volume.path.stat()
        sources.append([name, str(volume.path), volume.index, state.st_size, state.st_mtime_ns])
    return [sources, [list(group) for group in description.grids], list(description.channels), link]


class Journal:
    """Finished cases of one dataset folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._finished: dict[str, WrittenCase] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = WrittenCase(**json.loads(line))
                except (ValueError, TypeError):  # the line on which a run was killed; its case is redone
                    continue
                self._finished[entry.name] = entry

    def finished(self, case: Case, description: DatasetDescription, link: bool) -> WrittenCase | None:
        """The entry on ``case`` if it still holds: same sources, same conversion, every file there and of the same size."""
        entry = self._finished.get(case.name)
        if entry is None or set(entry.files) != set(targets(case, description).values()):
            return None
        try:
            sizes = {name: (self.folder / name).stat().st_size for name in entry.files}
            current = made_from(case, description, link)
        except OSError:
            return None
        return entry if sizes == entry.files and current == entry.made_from else None

    def sides(self) -> dict[str, set[bool]]:
        """Of every patient with a finished case, whether there are training (``False``) and test cases (``True``)."""
        found: dict[str, set[bool]] = {}
        for entry in self._finished.values():
            if entry.patient:
                found.setdefault(entry.patient, set()).add(any(place.startswith("imagesTs/") for place in entry.files))
        return found

    def add(self, entry: WrittenCase) -> None:
        """Append ``entry`` on a line of its own, also after a line that a kill has cut short."""
        with self.path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(json.dumps(entry.__dict__).encode() + b"\n")
        self._finished[entry.name] = entry


def write_case(
    case: Case, description: DatasetDescription, folder: Path, temporary_folder: Path, link: bool
) -> WrittenCase:
    """Write all files of a checked ``case`` into ``folder`` by way of ``temporary_folder`` (same file system).

    Volumes on the case's own grid are copied byte for byte, or symlinked; the others are resampled.

    Raises:
        MissingRequirement: a file cannot be written.
    """
    depends_on = made_from(case, description, link)
    volumes = case.volumes()
    sizes: dict[str, int] = {}
    harmonised = 0
    empty_label = False
    source = _SourceImages()
    try:
        reference = source.grid(volumes[description.reference_channel])
        for name, place in targets(case, description).items():
            temporary = temporary_folder / Path(place).name
            temporary.unlink(missing_ok=True)
            volume = volumes[name]
            resampled = name not in description.grids[0]
            changed = not resampled and source.grid(volume) != reference
            if resampled:
                image = resample(source.image(volume), reference, nearest=name == LABEL)
                _write_image(image, temporary)
            elif changed or volume.index is not None:
                image = with_grid(source.image(volume), reference)
                _write_image(image, temporary)
            else:
                image = source.image(volume) if name == LABEL else None
                _place_unchanged(volume.path, temporary, link)
            if name == LABEL:
                empty_label = not sitk.GetArrayViewFromImage(image).any()
            harmonised += changed
            os.replace(temporary, folder / place)
            sizes[place] = (folder / place).stat().st_size
    except (OSError, RuntimeError) as error:
        raise MissingRequirement(
            f"{case.name} could not be written into {folder}: {' '.join(str(error).split())}. "
            "Finished cases are kept; when the cause is removed, run the same command again."
        ) from error
    return WrittenCase(case.name, depends_on, sizes, empty_label, harmonised, case.patient)


class _SourceImages:
    """Reads with SimpleITK and holds the last file, because the channels of a 4D file follow each other."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._image = sitk.Image()

    def image(self, volume: Volume) -> sitk.Image:
        if self._path != volume.path:
            self._path, self._image = volume.path, sitk.ReadImage(str(volume.path))
        image = self._image
        return image if volume.index is None else image[:, :, :, volume.index]

    def grid(self, volume: Volume) -> Grid:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(volume.path))
        reader.ReadImageInformation()
        return Grid.of(reader)


def _write_image(image: sitk.Image, path: Path) -> None:
    """Write ``image`` compressed and read it to its end, because SimpleITK cuts the file short without an error on a full disk.

    Raises:
        OSError: the file is not whole.
    """
    sitk.WriteImage(image, str(path), True)
    expected = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    try:
        with gzip.open(path) as file:
            written = sum(len(block) for block in iter(partial(file.read, 1 << 20), b""))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OSError(f"{path} is not whole after writing ({error}). {free_space(path.parent)}") from error
    if written < expected:
        raise OSError(f"{path} holds {written} of {expected} bytes after writing. {free_space(path.parent)}")


def _place_unchanged(source: Path, temporary: Path, link: bool) -> None:
    """Copy, link, or (what is not compressed, whatever its name) compress: the voxels and the header stay what they are."""
    if not is_gzip(source):
        with (
            source.open("rb") as plain,
            temporary.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed,
        ):
            shutil.copyfileobj(plain, packed, 1 << 20)
    elif link:
        temporary.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, temporary)


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder inside the dataset's; those that killed runs left behind are removed first."""
    for left_over in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(left_over)
    temporary = folder / f"{PARTIAL}{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
