"""How many of the machine's cores are ours."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's share of processor time (cgroup); at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota / period) for quota, period in _processor_shares())]))


def _processor_shares() -> Iterator[tuple[int, int]]:
    """Quota and period of the control group, in either version's files; nothing where there is no limit."""
    with contextlib.suppress(OSError, ValueError):  # version 2: "max 100000" is no limit
        quota, period = (CONTROL_GROUPS / "cpu.max").read_text(encoding="utf-8").split()
        yield int(quota), int(period)
    with contextlib.suppress(OSError, ValueError):  # version 1: -1 is no limit
        quota, period = (
            (CONTROL_GROUPS / "cpu" / f"cpu.cfs_{what}_us").read_text(encoding="utf-8") for what in ("quota", "period")
        )
        if int(quota) > 0:
            yield int(quota), int(period)
