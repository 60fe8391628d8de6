"""A command whose output is read line by line, and of which nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from nnunet_kd.errors import MissingRequirement

TIME_TO_STOP = 20.0
"""Seconds that a command has to end its worker processes after Ctrl-C, before it is killed."""
TIME_TO_LINGER = 10.0
"""Seconds that worker processes may outlive a command that ended."""


def start(
    command: Sequence[str], environment: Mapping[str, str], start_new_session: bool = False
) -> subprocess.Popen[str]:
    """A command without input, whose messages and errors are read as one stream of lines.

    Args:
        command: the program and its arguments.
        environment: all of it; output comes line by line in any case.
        start_new_session: keep Ctrl-C from the command.

    Raises:
        MissingRequirement: the system cannot start it.
    """
    try:
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
    except OSError as error:
        raise MissingRequirement(
            f"{command[0]} cannot be started: {error.strerror or error}. If that file is missing or damaged, install the "
            f"package again that it came with."
        ) from error


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command in a session of its own, so that Ctrl-C reaches it through us alone; nothing of it outlives the context.

    Where the context ends with an exception, the command has :data:`TIME_TO_STOP` to end after a Ctrl-C of its own.

    Args:
        command, environment: see :func:`start`.

    Raises:
        MissingRequirement: the system cannot start it.
    """
    process = start(command, environment, start_new_session=True)
    output_ended = threading.Event()
    watcher = threading.Thread(target=_end_with, args=(process, output_ended), daemon=True)
    watcher.start()
    try:
        yield process
        output_ended.set()
        process.wait()
    except BaseException:
        if os.name == "posix":  # on Windows, which has no sessions, Ctrl-C has reached it
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
    """Workers of a command that was killed keep its output open, and reading it would never end."""
    process.wait()
    if not output_ended.wait(TIME_TO_LINGER):
        _kill_session(process)


def _kill_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def ending_signals() -> list[signal.Signals]:
    """Ctrl-C, a request to end, and a closed terminal; without the last where it is ignored, as ``nohup`` asks for."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@contextlib.contextmanager
def handling_ends(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Within, every one of :func:`ending_signals` calls ``handler``; for the main thread."""
    before = {number: signal.signal(number, handler) for number in ending_signals()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
