"""The same function over many cases, in processes, with a progress bar."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nnunet_kd.errors import MissingRequirement

Case = TypeVar("Case")
Result = TypeVar("Result")


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for :func:`run_all`, to be shared by all that is measured: each imports PyTorch when it starts.

    Args:
        workers: processes; 1 gives ``None``, which stays in this process.
    """
    if workers <= 1:
        yield None
        return
    # spawned, because a fork of a process in which torch has threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        yield pool


def run_all(
    function: Callable[[Case], Result], cases: Sequence[Case], pool: ProcessPoolExecutor | None, title: str
) -> list[Result]:
    """``function`` of every case, in their order, with a progress bar.

    Args:
        function, cases: picklable, if there is a pool.
        pool: of :func:`worker_pool`; ``None`` stays in this process.
        title: in front of the progress bar.

    Raises:
        MissingRequirement: a process was ended from outside, as by a system out of memory.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=len(cases))
        if pool is None:
            results = []
            for case in cases:
                results.append(function(case))
                progress.advance(task)
            return results
        futures: list[Future[Result]] = []
        try:
            futures += [pool.submit(function, case) for case in cases]
            for future in as_completed(futures):
                future.result()
                progress.advance(task)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise MissingRequirement(
                f"{title}: a worker process was ended from outside, most often because memory ran out. Nothing was "
                f"written. Use fewer processes, for example `-np 1`."
            ) from error
        except BaseException:
            for future in futures:
                future.cancel()
            raise
