"""Writing files so that a crash leaves the old one in place, and telling files apart."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nnunet_kd.errors import MissingRequirement, SettingsError

SECONDS_KEPT = 24 * 3600.0
"""Of a temporary file, where it cannot be told whether its process still runs."""
_TEMPORARY_FOLDER = re.compile(r"^\..+\.[a-z0-9_]{8}$")
"""As :func:`folder_beside` calls them; ``.settings`` is somebody else's."""
_TEMPORARY = re.compile(r"(?:\.(?P<computer>[0-9a-f]{8}))?\.(?P<process>[0-9]+)\.tmp$")


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], keep_as: Path | None = None, temporary_in: Path | None = None
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, force it to disk, then rename it to ``path``.

    Args:
        path: the file; at every moment either the old one or the new one, whole.
        write: gets the open temporary file; an OSError of it says that the disk refused, any other error is its own.
        keep_as: what was at ``path`` stays under this name.
        temporary_in: folder on the same disk for the temporary file; default: that of ``path``.

    Raises:
        MissingRequirement: the disk refused (full, read-only); what was at ``path`` is untouched.
    """
    temporary = _temporary(path if temporary_in is None else temporary_in / path.name)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.is_file():
            _keep(path, keep_as)
        os.replace(temporary, path)
    except OSError as error:
        raise MissingRequirement(
            f"{path} could not be written: {error}. {free_space(path.parent)} "
            f"{'The file from before is still there, undamaged.' if path.exists() else 'Nothing was left behind.'}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def free_space(folder: Path) -> str:
    """What a disk has left, in a sentence; PyTorch does not say that one is full."""
    try:
        return f"The disk of {folder} has {shutil.disk_usage(folder).free / 1e9:.2f} GB free."
    except OSError:
        return f"There is no folder {folder}."


def check_output(folder: Path, named: str = "--output", advice: str = "Choose another place.") -> None:
    """Whether a folder can be made or written to, known before hours of work.

    Args:
        folder: need not exist.
        named: the option, or what else users know it by.
        advice: the last sentence of errors.

    Raises:
        MissingRequirement: it cannot.
    """
    # os.path, because what cannot be looked into is not there
    existing = next((place for place in (folder, *folder.absolute().parents) if os.path.exists(place)), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise MissingRequirement(f"{named} {folder}: {existing} is no folder that can be written to. {advice}")


def check_output_file(path: Path, named: str = "--output") -> None:
    """Whether a file can be written, known before hours of work.

    Args:
        path: need not exist; its folder must.
        named: the option.

    Raises:
        SettingsError: it has no folder, or is one.
        MissingRequirement: its folder cannot be written to.
    """
    if not path.parent.is_dir():
        raise SettingsError(
            f"{named} {path}: the folder {path.parent} {why_no_folder(path.parent)}. Make it first, or choose another place."
        )
    if path.is_dir():
        raise SettingsError(f"{named} {path} is a folder. Give the name of a file.")
    if not os.access(path.parent, os.W_OK):
        raise MissingRequirement(
            f"the folder {path.parent} cannot be written to. Give another place with {named}, or change its permissions."
        )


def why_no_folder(path: Path) -> str:
    """``does not exist`` or ``is a file``, for a path that is no folder."""
    return "is a file" if os.path.exists(path) else "does not exist"


def csv_text(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A header and rows as comma-separated values, lines ending as on Unix everywhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """:func:`csv_text` through :func:`write_atomically`, which see."""
    content = csv_text(header, rows).encode()
    write_atomically(path, lambda file: file.write(content))


def _keep(path: Path, other: Path) -> None:
    """Give a file a second name, replacing what had it, without ever taking the first one away."""
    temporary = _temporary(other)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # some network disks have no hard links
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)
    finally:
        # renaming one name of a file to another of its names does nothing
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal digits, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    """Where a file is written before it has its name; says which process on which computer does so."""
    return path.with_name(f"{path.name}.{_computer()}.{os.getpid()}.tmp")


def _computer() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the temporary files that killed processes left in ``folder``; returns them.

    What a running process writes stays. Where that cannot be told, files of another computer for example, it stays for a day.
    """
    leftovers = []
    for path in folder.glob("*.tmp"):
        found = _TEMPORARY.search(path.name)
        if found is not None and _is_left(path, found["computer"], int(found["process"])):
            path.unlink(missing_ok=True)
            leftovers.append(path)
    return leftovers


def _is_left(path: Path, computer: str | None, process: int) -> bool:
    if computer in (None, _computer()) and os.name == "posix":
        try:
            os.kill(process, 0)  # asks alone; elsewhere it would end the process
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False  # somebody else's
        return False
    try:
        return time.time() - path.stat().st_mtime > SECONDS_KEPT
    except OSError:  # it has its name by now
        return False


def remove_leftover_folders(folder: Path) -> list[Path]:
    """Delete what killed processes left of :func:`folder_beside` in ``folder``, which nobody else works in; returns them."""
    leftovers = [path for path in folder.glob(".*") if path.is_dir() and _TEMPORARY_FOLDER.search(path.name)]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return leftovers


@contextmanager
def folder_beside(output: Path) -> Iterator[Path]:
    """A temporary folder on the disk of ``output``, whose own folder is made if need be; gone afterwards.

    Raises:
        MissingRequirement: the disk refused, here or within the context.
    """
    temporary: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        yield temporary
    except OSError as error:
        raise MissingRequirement(f"{output} could not be written: {error}. {free_space(output.parent)}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
