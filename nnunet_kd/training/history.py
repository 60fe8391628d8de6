"""Losses of a distillation, per epoch: gathered, told, drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_kd.system.files import write_atomically
from nnunet_kd.training.distributed import gather


def _groups(names: Iterable[str]) -> list[str]:
    """``segmentation``, objectives, and what they explore, in order of appearance."""
    return list(dict.fromkeys(name.split("/")[0] for name in names))


class LossHistory:
    """Mean loss terms of every epoch.

    Attributes:
        epochs: one dictionary per epoch, ``segmentation``, then per objective ``dcd``, ``dcd/stage0``, ...; an objective that
            had no weight in an epoch is absent there. An epoch of which nothing is known is empty.
    """

    def __init__(self, epochs: list[dict[str, float]] | None = None) -> None:
        self.epochs: list[dict[str, float]] = list(epochs or [])
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Take in one iteration's detached scalars; nothing leaves the device until the epoch ends.

        What is not finite is left out: its step is skipped and counted elsewhere.
        """
        for name, value in terms.items():
            finite = value.isfinite()
            new = torch.stack([value.where(finite, torch.zeros_like(value)), finite.to(value.dtype)])
            self._sums[name] = self._sums[name] + new if name in self._sums else new

    def close_epoch(self, epoch: int) -> dict[str, float]:
        """Average over iterations and processes, keep the result as ``epoch``'s, and return it."""
        own = {name: float(total / count) for name, (total, count) in self._sums.items() if count}
        everyone = gather(own)
        # a process may lack a term that never was finite there
        names = dict.fromkeys(name for other in everyone for name in other)
        means = {name: float(np.mean([other[name] for other in everyone if name in other])) for name in names}
        self._sums = {}
        # a checkpoint of stock nnU-Net knows nothing of the epochs before
        self.epochs[epoch:] = [*({} for _ in range(epoch - len(self.epochs))), means]
        return means

    def describe(self, means: Mapping[str, float]) -> list[str]:
        """One line for the segmentation loss and one per objective, its terms behind it."""
        lines = []
        for group in _groups(means):
            terms = [f"{key.split('/', 1)[1]} {means[key]:.4g}" for key in means if key.startswith(f"{group}/")]
            if group in means:
                lines.append(f"{group} loss {means[group]:.4f}" + (f" ({', '.join(terms)})" if terms else ""))
            else:
                lines.append(f"{group}: {', '.join(terms)}")
        return lines

    def draw(self, path: Path) -> None:
        """Write the curves as a PNG: the segmentation loss, and every objective with its terms, over epochs.

        Nothing is written if no term was finite in any epoch.
        """
        names = list(dict.fromkeys(name for epoch in self.epochs for name in epoch))
        groups = _groups(names)
        if not groups:
            return
        with plt.rc_context(plt.rcParamsDefault):  # nnU-Net's own plot leaves larger fonts behind
            figure = Figure(figsize=(10, 3.2 * len(groups)), layout="constrained")
            axes = figure.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
            for axis, group in zip(axes, groups, strict=True):
                self._draw_group(axis, group, [name for name in names if name.startswith(f"{group}/")])
            axes[-1].set_xlabel("epoch")
            axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
            write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))

    def _draw_group(self, axis: Axes, group: str, terms: list[str]) -> None:
        colours = colormaps["viridis"](np.linspace(0, 0.85, max(1, len(terms))))
        for name, colour in zip(terms, colours, strict=False):
            axis.plot(self._curve(name), color=colour, linewidth=1.2, label=name.split("/", 1)[1])
        if any(group in epoch for epoch in self.epochs):
            axis.plot(self._curve(group), color="black", linewidth=2, label="sum" if terms else group)
        values = [value for name in (group, *terms) for value in self._curve(name) if np.isfinite(value)]
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
        axis.set_ylabel(group.replace("_", " ") if group.endswith("_exploration") else f"{group} loss")
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)

    def _curve(self, name: str) -> list[float]:
        return [epoch.get(name, float("nan")) for epoch in self.epochs]
