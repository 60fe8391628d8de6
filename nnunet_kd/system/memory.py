"""Memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


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
    """Memory that new work may take now (Linux); ``None`` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


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
