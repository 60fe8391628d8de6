"""What an output folder was begun with, and what is fixed: the same line goes on, another is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.system.files import remove_leftovers, sha256, write_atomically
from nnunet_kd.workflows.shrink.request import Places

VERSION = 1
SECONDS_BETWEEN_WRITES = 20


class State:
    """The file ``work/state.json``.

    Attributes:
        values: what is fixed or was measured, by name; see :meth:`keep`.
        arguments: as told when the folder was begun.
    """

    def __init__(self, places: Places, arguments: Mapping[str, Any]) -> None:
        """Open an output folder that was begun with the same arguments; a new one is begun by the first :meth:`save`.

        Raises:
            DataError: it was begun with other arguments.
        """
        self.path = places.state
        self.arguments: dict[str, Any] = json.loads(json.dumps(arguments))
        self.values: dict[str, Any] = {}
        self._spent_before, self._began, self._written = 0.0, time.monotonic(), 0.0
        if self.path.is_file():
            self._read(places)
        remove_leftovers(self.path.parent)

    def _read(self, places: Places) -> None:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            before, self.values = content["arguments"], content["values"]
            self._spent_before = float(content["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} cannot be read ({error}). Delete {places.work} to begin anew, or choose another OUT."
            ) from error
        changed = [key for key in {**before, **self.arguments} if before.get(key) != self.arguments.get(key)]
        if changed:
            told = "; ".join(
                f"{key}: was {_told(before.get(key))}, now {_told(self.arguments.get(key))}" for key in changed
            )
            raise DataError(
                f"{places.output} was begun with other arguments ({told}). Give the same again to go on, or another OUT to begin "
                f"anew."
            )

    @property
    def seconds(self) -> float:
        """Wall-clock time spent so far, in this run and those before it."""
        return self._spent_before + time.monotonic() - self._began

    def keep(self, name: str, value: Any) -> Any:
        """Fix a value on disk; returns it."""
        self.values[name] = value
        self.save()
        return value

    def same(self, name: str, value: Any, what: str) -> None:
        """Fix a value, or refuse another than the fixed one; it is on disk after the next :meth:`save`.

        Args:
            name: of the value.
            value: as JSON takes it.
            what: it is, in an error.

        Raises:
            DataError: it has changed since the folder was begun.
        """
        before = self.values.setdefault(name, value)
        if before != value:
            told = f"{_told(before)}, now {_told(value)}"
            if isinstance(before, list) and isinstance(value, list):
                gone, new = [one for one in before if one not in value], [one for one in value if one not in before]
                told = f"gone {', '.join(gone[:3]) or 'none'}; new {', '.join(new[:3]) or 'none'}"
            raise DataError(
                f"{what} have changed since {self.path.parent.parent} was begun ({told}). Put them back to go on, or give "
                f"another OUT to begin anew."
            )

    def tick(self) -> None:
        """Write the time spent now and then, so that a killed run's counts, too."""
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.save()

    def counted(self, show: Callable[[float, float, str], Any]) -> Callable[[float, float, str], None]:
        """``show`` that also does :meth:`tick`."""

        def shown(done: float, total: float, what: str) -> None:
            show(done, total, what)
            self.tick()

        return shown

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {"version": VERSION, "arguments": self.arguments, "values": self.values, "seconds": self.seconds}
        text = json.dumps(content, indent=2).encode()
        write_atomically(self.path, lambda file: file.write(text))
        self._written = time.monotonic()


@contextlib.contextmanager
def sole_use(places: Places) -> Iterator[None]:
    """Within, no other process works in the output folder; the lock lets go of itself when a process ends.

    If nothing was begun within, because something was refused, what was made here is taken away again.

    Raises:
        MissingRequirement: it cannot be written to, or has no file locks.
        DataError: it holds other things, or another process works in it.
    """
    if not places.state.is_file():
        _check_new(places)
    made = [folder for folder in (places.work, places.output) if not folder.exists()]
    check_writable(places)
    lock = FileLock(places.work / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(
            f"another process works in OUT, {places.output}. Wait until it has ended, or give another OUT."
        ) from error
    except (NotImplementedError, OSError) as error:
        raise MissingRequirement(
            f"the file system of OUT, {places.output}, has no file locks ({error}). They keep two processes from working in one "
            f"folder. Give an OUT elsewhere."
        ) from error
    try:
        yield
    finally:
        if not places.state.is_file() and places.work in made:
            shutil.rmtree(places.work, ignore_errors=True)
            with contextlib.suppress(OSError):  # something else lies there by now
                if places.output in made:
                    places.output.rmdir()
        lock.release()


def check_writable(places: Places) -> None:
    """Whether files can be made in an output folder, which is made if need be.

    Raises:
        MissingRequirement: they cannot.
    """
    probe = places.work / f".writable.{os.getpid()}"
    try:
        places.work.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise MissingRequirement(
            f"OUT, {places.output}, cannot be written to: {error.strerror or error}. Choose another folder."
        ) from error


def _check_new(places: Places) -> None:
    if places.output.is_file():
        raise DataError(f"OUT, {places.output}, is a file. Give a folder that is new or empty.")
    others = sorted(path.name for path in places.output.iterdir()) if places.output.is_dir() else []
    if others and others != [places.work.name]:
        raise DataError(
            f"OUT, {places.output}, holds other things ({', '.join(others[:3])}). Give a folder that is new or empty."
        )


def _told(value: Any) -> str:
    if isinstance(value, list) and len(value) > 5:
        return f"{len(value)} entries"
    return "not given" if value is None else str(value)


def folder_fingerprint(paths: list[Path], show: Callable[[float, float, str], None]) -> list[str]:
    """Names and SHA-256 of files, by which a changed folder is noticed; ``show``: see :class:`~.request.Listener`."""
    found = []
    for done, path in enumerate(sorted(paths)):
        show(done, len(paths), f"reading {path.name}")
        found.append(f"{path.name} {sha256(path)}")
    return found
