"""Timing pieces of work side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median run."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{1e3 * self.median:.1f} ms ({1e3 * min(self.seconds):.1f} to {1e3 * max(self.seconds):.1f})"


def time_in_turn(
    work: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | str | None = None,
    warm_up: int = 1,
    title: str | None = None,
) -> dict[str, Timing]:
    """Run every piece ``repeats`` times in turn (a b c, a b c, ...), so that drift of the machine hits all alike.

    Args:
        work: by name.
        repeats: counted runs of each.
        device: what they run on; CUDA is waited for before and after each run. Default: CPU.
        warm_up: runs of each before, which do not count.
        title: in front of a progress bar; default: none is shown.
    """
    cuda = device is not None and torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in work}
    console = Console(stderr=True)
    hidden = title is None or not console.is_terminal
    for turn in track(range(-warm_up, repeats), title or "", console=console, transient=True, disable=hidden):
        for name, run in work.items():
            if cuda:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
