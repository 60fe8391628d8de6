"""What control groups leave of the memory: those of a container, or of a job on a cluster (Linux)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_in_groups() -> int | None:
    """Bytes that this process may still use by every group it is in, from its own to the outermost; ``None``: no limit.

    Files that the system keeps in memory count as used there, but go when the memory is needed. So they count as free here.
    """
    limits = [free for folder in _folders() for free in _free(folder)]
    return min(limits, default=None)


def _folders() -> Iterator[Path]:
    """Version 2's folders lie below :data:`ROOT`, version 1's below its ``memory``; in a container often the outermost alone."""
    found = {ROOT: None, ROOT / "memory": None}
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        for controller, root in (("", ROOT), ("memory", ROOT / "memory")):
            if controller in controllers.split(","):
                inner = root / own.strip("/")
                found |= dict.fromkeys(place for place in (inner, *inner.parents) if root in place.parents)
    yield from found


def _free(folder: Path) -> Iterator[int]:
    """Limit less what is used, in either version's files; nothing where there is no limit."""
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed, taken = (
                int((folder / name).read_text(encoding="utf-8")) for name in (limit, used)
            )  # "max" is no limit
        except (OSError, ValueError):
            continue
        yield max(0, allowed - taken + _statistic(folder / "memory.stat", files))


def _statistic(path: Path, key: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)
