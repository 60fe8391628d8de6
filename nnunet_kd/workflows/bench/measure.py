"""Timing and memory of a piece of work."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median run."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{1e3 * self.median:.1f} ms ({1e3 * min(self.seconds):.1f} to {1e3 * max(self.seconds):.1f})"


def time_in_turn(
    work: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | None = None, warm_up: int = 1
) -> dict[str, Timing]:
    """Run every piece ``repeats`` times in turn (a b c, a b c, ...), so that drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(-warm_up, repeats):
        for name, run in work.items():
            _synchronise(device)
            start = time.perf_counter()
            run()
            _synchronise(device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _synchronise(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def resident_bytes() -> int:
    """Resident memory of this process now (Linux; elsewhere its peak so far)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_resident_bytes()
    return pages * resource.getpagesize()


def peak_resident_bytes() -> int:
    """The largest resident memory this process has had, since :func:`forget_peak` on Linux."""
    try:
        # not getrusage: its maximum outlives exec, so a small child would report a large parent's
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Start :func:`peak_resident_bytes` anew from the present memory, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
