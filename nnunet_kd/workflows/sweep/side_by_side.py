"""Several trainings of a sweep at once on one machine, each with its share of the cores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunet_kd.system.cores import usable_cores
from nnunet_kd.system.sessions import ending_signals, start
from nnunet_kd.workflows.sweep.subprocesses import NNUNET_KD

THREADS, LOADERS = "OMP_NUM_THREADS", "nnUNet_n_proc_DA"


def shares(jobs: int, cores: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What each of several trainings may take: variables for its environment.

    Threads that wait for one another spin, so that two trainings with all cores each are several times slower than two with half
    of them.

    Args:
        jobs: how many trainings.
        cores: to divide, see :func:`nnunet_kd.system.cores.usable_cores`.
        environment: the caller's; a number of threads or loader processes that it names is kept.
    """
    own = str(max(1, cores // jobs))
    return {name: environment.get(name) or own for name in (THREADS, LOADERS)}


def run_side_by_side(
    arguments: Sequence[str], jobs: int, say: Callable[[str], object], program: Sequence[str] = NNUNET_KD
) -> int:
    """The same sweep ``jobs`` times at once; they share its runs as sweeps on several GPUs do.

    Args:
        arguments: of the command, without the number of jobs.
        jobs: how many.
        say: told every line of their output, its job's number in front.
        program: what the arguments are given to.

    Returns:
        The largest exit code.
    """
    environment = {**os.environ, **shares(jobs, usable_cores(), os.environ)}
    with _Forwarding() as forwarding:
        for _ in range(jobs):
            # apart from the terminal, whose Ctrl-C would reach them a second time and cut short the end of their trainings
            forwarding.add(start([*program, *arguments], environment, start_new_session=True))
        processes = forwarding.processes
        readers = [
            threading.Thread(target=_pass_on, args=(process, number, say), daemon=True)
            for number, process in enumerate(processes, 1)
        ]
        for reader in readers:
            reader.start()
        codes = [process.wait() for process in processes]
        for reader in readers:
            reader.join()
    return max(code if code >= 0 else 128 - code for code in codes)


def _pass_on(process: subprocess.Popen[str], number: int, say: Callable[[str], object]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        say(f"{number}: {line.rstrip()}")


class _Forwarding:
    """Within, Ctrl-C, a request to end and a closed terminal reach every process once, which stops its training first.

    Attributes:
        processes: those that are told, also of what came while they were started.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self._came: list[int] = []
        self._told: dict[tuple[int, int], object] = {}
        self._before: dict[int, Any] = {}

    def add(self, process: subprocess.Popen[str]) -> None:
        """One more process."""
        self.processes.append(process)
        self._tell()

    def __enter__(self) -> _Forwarding:
        self._before = {number: signal.signal(number, self._forward) for number in ending_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: object) -> None:
        self._came.append(number)
        self._tell()

    def _tell(self) -> None:
        """Every process everything that came, once, also if a signal comes meanwhile: whoever sets a key first is to tell it."""
        for process in list(self.processes):
            for place, number in enumerate(list(self._came)):
                own = object()
                if self._told.setdefault((process.pid, place), own) is own:
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(number)
