"""Run a function over cases, in this process or in several, under a progress bar."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import SimpleITK as sitk
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nnunet_kd.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_finished(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int, title: str
) -> Iterator[tuple[Item, Result]]:
    """``(item, function(item))`` in the order in which they finish.

    ``function`` and ``items`` must be picklable if ``processes > 1``. The first exception of ``function`` is raised and what
    has not started is dropped; so it is after Ctrl-C, when running calls end first.

    Raises:
        DataError: a worker process died.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not items) as progress:
        task = progress.add_task(title, total=len(items))
        if processes <= 1 or len(items) <= 1:
            for item in items:
                yield item, function(item)
                progress.advance(task)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(items)), mp_context=context, initializer=_one_thread) as pool:
            with _interrupts_ignored():  # the workers start here and keep this; Ctrl-C is for the main process
                futures = {pool.submit(function, item): item for item in items}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
                    progress.advance(task)
            except BrokenProcessPool as error:
                raise DataError(
                    "A worker process died, most likely because memory ran out: run the same again with a smaller -np "
                    "(`processes` in Python). In a script of your own, the call must stand below "
                    '`if __name__ == "__main__":`, because every worker imports the script.'
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may signals be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
