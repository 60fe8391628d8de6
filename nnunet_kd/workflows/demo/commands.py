"""Running nnU-Net's own commands with visible progress, as a user's shell would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nnunet_kd.errors import RunFailed


def script(name: str) -> str:
    """The full path of a command installed beside this Python."""
    return str(Path(sysconfig.get_path("scripts")) / name)


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
    """
    lines: list[tuple[float, str]] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with log.open("w", buffering=1) as file, Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task(title, total=steps, state="")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
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
