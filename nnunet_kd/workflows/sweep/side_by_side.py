"""Several trainings of a sweep at once on one machine, each with its share of the cores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from nnunet_kd.system.cores import usable_cores
from nnunet_kd.workflows.sweep.subprocesses import NNUNET_KD, start

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
    processes = [start([*program, *arguments], environment) for _ in range(jobs)]
    with _forwarded_signals(processes):
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


@contextlib.contextmanager
def _forwarded_signals(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Within, Ctrl-C and a request to end reach the processes, which stop their trainings first."""

    def forward(number: int, frame: object) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
