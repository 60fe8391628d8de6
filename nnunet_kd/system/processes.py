"""The same function over many cases, in this process or in several, under a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nnunet_kd.errors import MissingRequirement

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes of one thread each, to be shared by all that runs in turn: each imports its libraries when it starts.

    Args:
        workers: processes; 1 gives ``None``, which stays in this process.
    """
    if workers <= 1:
        yield None
        return
    # spawned, because a fork of a process in which libraries have threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        yield pool


def as_finished(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    pool: ProcessPoolExecutor | None,
    title: str,
    shown: bool = True,
) -> Iterator[tuple[int, Result]]:
    """``(place of the item, function(item))`` in the order in which they finish.

    The first exception of ``function`` is raised and what has not started is dropped; so it is after Ctrl-C, when running
    calls end first.

    Args:
        function, items: picklable, if there is a pool.
        pool: of :func:`worker_pool`; ``None`` stays in this process.
        title: in front of the progress bar, and in errors.
        shown: whether there is a progress bar; ``False`` for a caller that has its own.

    Raises:
        MissingRequirement: a worker process died.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not items or not shown) as progress:
        task = progress.add_task(title, total=len(items))
        if pool is None:
            for place, item in enumerate(items):
                yield place, function(item)
                progress.advance(task)
            return
        futures = {}
        try:
            with _interrupts_held_back():  # the workers start here
                futures = {pool.submit(function, item): place for place, item in enumerate(items)}
            for future in as_completed(futures):
                yield futures[future], future.result()
                progress.advance(task)
        except BrokenProcessPool as error:
            raise MissingRequirement(
                f"{title}: a worker process ended without an error message. Systems end processes when memory is full; on Linux, "
                f"`dmesg` says so. Then fewer processes help: a smaller -np, or "
                f"nnUNet_def_n_proc=2 before the command. In a script of your own, the call must stand below "
                f'`if __name__ == "__main__":`, because every worker imports the script.'
            ) from error
        finally:
            for future in futures:
                future.cancel()
            wait(futures)  # what a running call still writes must not be taken away


def run_all(
    function: Callable[[Item], Result], items: Sequence[Item], pool: ProcessPoolExecutor | None, title: str
) -> list[Result]:
    """``function`` of every item, in their order; see :func:`as_finished`."""
    return [result for _, result in sorted(as_finished(function, items, pool, title), key=lambda pair: pair[0])]


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process started here never sees Ctrl-C, which is for this one; what comes meanwhile arrives afterwards.

    Windows has no signal masks; there, interrupted workers say so too.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Before the worker imports anything heavy: as many workers as wanted, each with one thread."""
    os.environ.update(OMP_NUM_THREADS="1", ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1")
