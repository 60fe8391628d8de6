"""Run a function over cases, in this process or in several, under a progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
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
    has not started is dropped.

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
            futures = {pool.submit(function, item): item for item in items}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
                    progress.advance(task)
            except BrokenProcessPool as error:
                raise DataError(
                    "A worker process died, most likely because memory ran out. Run the same command again with a smaller -np."
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
