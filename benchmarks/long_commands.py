"""Commands that run for hours as a user types them: what ends this script ends them first, and orderly."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nnunet_kd.system.sessions import handling_ends

INTERRUPTED = 130
"""Exit code after a request to end."""
KEEPING = 60.0
"""Seconds between two looks for finished trainings."""
WAIT = 0.5
"""Seconds after which a request to end is noticed at the latest."""


def run(*command: str | Path) -> None:
    """Run a command; end where it fails."""
    if code := code_of(*command):
        sys.exit(code)


def code_of(*command: str | Path, every: float | None = None, meanwhile: Callable[[], object] | None = None) -> int:
    """Run a command in a session of its own and wait for it.

    Ctrl-C and requests to end reach it and its children once, through this process. It may then take its time to stop.

    Args:
        command: the program and its arguments.
        every: seconds between two calls of ``meanwhile``; default: it is not called.
        meanwhile: what else is to be done while the command runs.

    Returns:
        The exit code.

    Raises:
        SystemExit: with :data:`INTERRUPTED`, when the command has stopped after a request to end.
    """
    told = [str(part) for part in command]
    print("$", shlex.join(told), flush=True)
    process = subprocess.Popen(told, start_new_session=True)
    asked: list[int] = []

    def forward(number: int, frame: object) -> None:
        asked.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    with handling_ends(forward):
        try:
            code, looked = None, time.monotonic()
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(WAIT)
                if meanwhile is not None and every is not None and time.monotonic() - looked >= every:
                    meanwhile()
                    looked = time.monotonic()
        except BaseException:  # of `meanwhile`: nothing is left behind
            forward(signal.SIGINT, None)
            process.wait()
            raise
    if asked:
        sys.exit(INTERRUPTED)
    return code
