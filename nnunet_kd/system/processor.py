"""The name of the machine's processor, for records of what was measured."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}
"""What tells one processor from another of the same name, and what Linux calls it."""


def processor_name() -> str:
    """As Linux tells it, with family, model and stepping, since virtual machines shorten names; else as Python does.

    ``CPU`` where neither knows.
    """
    with contextlib.suppress(OSError):
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n", 1)[0]
        pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
        told = {name.strip(): value.strip() for name, value in pairs}
        numbers = [f"{name} {told[entry]}" for name, entry in _NUMBERS.items() if entry in told]
        if "model name" in told:
            return f"{told['model name']} ({', '.join(numbers)})" if numbers else told["model name"]
    return platform.processor() or "CPU"
