"""Memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_kd.system.cores import CONTROL_GROUPS

SYSTEM_MEMORY, OWN_GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a control group: its limit and what it uses, and in its ``memory.stat`` how much of that are files that can go."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT, _LARGEST_EVER = 1 << 30, 32 << 20
"""Bytes of the largest block that stays, and of the largest one that older versions of glibc can keep."""
_KEPT = {_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: -1}
_USUAL = {_MMAP_THRESHOLD: _LARGEST_EVER, _TRIM_THRESHOLD: 2 * _LARGEST_EVER}
"""Options of glibc's ``mallopt``; the latter are the most that glibc comes to by itself (``man mallopt``)."""
CHOSEN_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables of glibc; where one is set, the user decides."""
_keepers = 0
"""How many :func:`freed_memory_kept` are within each other now."""


@contextlib.contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Within, memory that is freed stays with this process, for the next block.

    Every step of a training on a CPU frees its activations and takes as much memory again. By itself glibc gives large blocks,
    and what is free at the end of the heap, back to the system at once. The system then has to clear every page anew, which may
    take as long as all else in a step (``benchmarks/kept_memory.py``). Numbers stay the same, bit for bit. The process holds up
    to half as much memory again, since blocks of other sizes leave gaps. Blocks of more than 1 GiB are given back at once, and
    at the end all that is free, also where this stands within another one.

    Nothing happens where the C library is another than glibc, or where one of :data:`CHOSEN_BY_USER` is set.

    Args:
        wanted: ``False``: nothing happens.
    """
    global _keepers
    library = _glibc() if wanted else None
    if library is None:
        yield
        return
    _keepers += 1
    _set(library, _KEPT)
    try:
        yield
    finally:
        _keepers -= 1
        if not _keepers:
            _set(library, _USUAL)
        library.malloc_trim(0)  # also within another: a start takes more than the training that follows it


def _glibc() -> Any:
    """The C library that this process runs with, if it is glibc and its user leaves it to us; else ``None``."""
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN_BY_USER):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None


def _set(library: Any, options: dict[int, int]) -> None:
    for option, value in options.items():
        if not library.mallopt(option, value):
            library.mallopt(option, _LARGEST_EVER)


def resident_bytes() -> int:
    """Resident memory of this process now (Linux; elsewhere its peak so far)."""
    return _status("VmRSS") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The largest resident memory this process has had, since :func:`forget_peak` where that is possible."""
    # not getrusage: its maximum outlives exec, so a small child would report a large parent's
    if known := _status("VmHWM"):
        return known
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Memory that new work may take now (Linux): what the system has left, and what a container or a cluster's job may still use.

    ``None`` where neither says.
    """
    return min([*_left_in_system(), *_left_in_groups()], default=None)


def _left_in_system() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for line in SYSTEM_MEMORY.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _left_in_groups() -> Iterator[int]:
    """Of every control group that this process is in: its limit less what is used; nothing where there is no limit."""
    for folder, (limit, used, files) in _groups():
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            allowed, taken = (int((folder / name).read_text(encoding="utf-8")) for name in (limit, used))
            yield max(0, allowed - taken + _can_go(folder / "memory.stat", files))


def _can_go(statistics: Path, key: str) -> int:
    """Bytes of files that the system keeps in memory only as long as nobody else needs it; they count as used."""
    with contextlib.suppress(OSError):
        for line in statistics.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key} "):
                return int(line.split()[1])
    return 0


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The control groups that limit this process's memory, from its own to the outermost, in either version's folders.

    A cluster's job is a group within others, each of which may have a limit. In a container the names are often those outside
    of it, and only the outermost folder is there.
    """
    roots = {"": (CONTROL_GROUPS, _VERSION_2), "memory": (CONTROL_GROUPS / "memory", _VERSION_1)}
    yield from roots.values()
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        for controller in {"", "memory"} & set(controllers.split(",")):
            root, names = roots[controller]
            folder = root / own.lstrip("/")
            while folder != root and root in folder.parents:
                yield folder, names
                folder = folder.parent


def forget_peak() -> bool:
    """Start :func:`peak_resident_bytes` anew from the present memory; ``False`` where the system cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    """A value of Linux' ``/proc/self/status`` in bytes; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
