"""``nnunet-kd`` as a subprocess whose output is read line by line, and of which nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE

NNUNET_KD = (sys.executable, "-c", "from nnunet_kd.cli import main; main()")
"""The command of this very Python, wherever its scripts are."""
TIME_TO_STOP = 20.0
"""Seconds that a training has to end its worker processes after Ctrl-C, before it is killed."""
TIME_TO_LINGER = 10.0
"""Seconds that worker processes may outlive a training that ended."""


def start(
    command: Sequence[str], environment: Mapping[str, str], start_new_session: bool = False
) -> subprocess.Popen[str]:
    """A command without input, whose messages and errors are read as one stream of lines.

    Args:
        command: the program and its arguments.
        environment: all of it; output comes line by line in any case.
        start_new_session: keep Ctrl-C from the command.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**environment, "PYTHONUNBUFFERED": "1"},
        start_new_session=start_new_session,
    )


@contextlib.contextmanager
def running_training(command: Sequence[str], results: Path) -> Iterator[subprocess.Popen[str]]:
    """The subprocess in a session of its own, so that Ctrl-C reaches it through us alone; nothing of it is left behind."""
    # a recipe that the caller's variable names is among the run's arguments
    environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
    environment["nnUNet_results"] = str(results)
    process = start(command, environment, start_new_session=True)
    output_ended = threading.Event()
    watcher = threading.Thread(target=_end_with, args=(process, output_ended), daemon=True)
    watcher.start()
    try:
        yield process
        output_ended.set()
        process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TIME_TO_STOP)
        raise
    finally:
        output_ended.set()
        _kill_session(process)
        process.wait()
        watcher.join()
        if process.stdout is not None:
            process.stdout.close()


def _end_with(process: subprocess.Popen[str], output_ended: threading.Event) -> None:
    """Workers of a training that was killed keep its output open, and reading it would never end."""
    process.wait()
    if not output_ended.wait(TIME_TO_LINGER):
        _kill_session(process)


def _kill_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)
