"""Memory of this process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from nnunet_kd.system.cores import CONTROL_GROUPS

SYSTEM_MEMORY, OWN_GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a control group: its limit and what it uses, and in its ``memory.stat`` how much of that are files that can go."""


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
        for line in SYSTEM_MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _left_in_groups() -> Iterator[int]:
    """Of every control group that this process is in: its limit less what is used; nothing where there is no limit."""
    for folder, (limit, used, files) in _groups():
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            allowed, taken = (int((folder / name).read_text()) for name in (limit, used))
            yield max(0, allowed - taken + _can_go(folder / "memory.stat", files))


def _can_go(statistics: Path, key: str) -> int:
    """Bytes of files that the system keeps in memory only as long as nobody else needs it; they count as used."""
    with contextlib.suppress(OSError):
        for line in statistics.read_text().splitlines():
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
        lines = OWN_GROUPS.read_text().splitlines()
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
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    """A value of Linux' ``/proc/self/status`` in bytes; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
