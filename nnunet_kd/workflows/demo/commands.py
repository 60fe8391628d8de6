"""Running nnU-Net's own commands with visible progress, as a user's shell would."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nnunet_kd.errors import MissingRequirement, RunFailed
from nnunet_kd.system.files import free_space
from nnunet_kd.system.sessions import handling_ends, running


def script(name: str) -> str:
    """The full path of an installed command: beside this Python, of ``pip install --user``, or wherever the shell finds it.

    Args:
        name: of the command; a path stays as it is.

    Raises:
        MissingRequirement: there is none.
    """
    user = sysconfig.get_preferred_scheme("user")
    folders = (sysconfig.get_path("scripts"), sysconfig.get_path("scripts", user), None)
    for folder in folders:
        if (found := shutil.which(name, path=folder)) is not None:
            return found
    raise MissingRequirement(
        f"there is no command {name}, neither in {folders[0]} nor in any folder of PATH. Add the folder to PATH in which pip "
        f"put it, or install nnunetv2 and nnunet-kd again."
    )


def run_with_progress(
    title: str,
    command: Sequence[str],
    log: Path,
    variables: Mapping[str, str],
    steps: int | None = None,
    is_step: Callable[[str], bool] = lambda line: False,
) -> list[tuple[float, str]]:
    """Run a command, its output to ``log``, a progress bar on the console.

    Args:
        title: what the bar says.
        command: program and arguments.
        log: the log file's path.
        variables: environment variables to add.
        steps, is_step: how many lines of the output count as steps, and which.

    Returns:
        Every line of the output with the time it came.

    Raises:
        RunFailed: the command failed; with the end of its output and the log's path.
        MissingRequirement: the command cannot be started; or the log cannot be written, and the command was ended.
    """
    lines: list[tuple[float, str]] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with (
        handling_ends(_end),
        _log(log, title) as write,
        Progress(*columns, TimeElapsedColumn()) as progress,
        running(command, {**os.environ, **variables}) as process,
    ):
        task = progress.add_task(title, total=steps, state="")
        assert process.stdout is not None
        for line in process.stdout:
            write(line)
            lines.append((time.perf_counter(), line.rstrip()))
            if is_step(line):
                done = progress.tasks[0].completed + 1
                progress.update(task, completed=done, state=f"{done:.0f}/{steps}")
        code = process.wait()
        if code == 0:
            progress.update(task, total=steps or 1, completed=steps or 1, state="done")
    if code != 0:
        end = "\n".join(text for _, text in lines[-15:])
        raise RunFailed(f"{title} failed (exit code {code}): {shlex.join(command)}\n{end}\nThe whole output: {log}")
    return lines


def _end(number: int, frame: FrameType | None) -> None:
    """Whatever asks this process to end also ends the command, which no terminal reaches."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def _log(path: Path, title: str) -> Iterator[Callable[[str], object]]:
    """What writes to a log file, and says so if the disk refuses."""

    def refused(error: OSError) -> MissingRequirement:
        return MissingRequirement(
            f"the output of {title!r} could not be written to {path}: {error}. {free_space(path.parent)}"
        )

    try:
        file = path.open("w", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise refused(error) from error

    def write(line: str) -> None:
        try:
            file.write(line)
        except OSError as error:
            raise refused(error) from error

    try:
        yield write
    except BaseException:
        with suppress(OSError):  # what could not be written is tried once more
            file.close()
        raise
    try:
        file.close()
    except OSError as error:
        raise refused(error) from error
