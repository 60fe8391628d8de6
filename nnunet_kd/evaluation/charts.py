"""The report's charts, as SVG. Colours are those of Okabe and Ito, which stay apart for colour-blind readers."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from nnunet_kd.evaluation.comparison import Comparison
from nnunet_kd.evaluation.metrics import DICE, Metric
from nnunet_kd.evaluation.results import paired_values

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#000000")
MARKERS = "osD^vPX*<>"
GREY = "#595959"
_WIDTH = 4.8
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E0E0E0",
    "axes.axisbelow": True,
    "svg.fonttype": "path",  # the same width in every browser, so nothing is clipped
    "svg.hashsalt": "nnunet-kd",
}


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour for every method, the same in all charts; markers tell more than eight methods apart."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(methods)}


def _markers(methods: Sequence[str]) -> dict[str, str]:
    return {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(methods)}


def to_svg(figure: Figure) -> str:
    """A figure as SVG text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _legend_columns(names: Collection[str]) -> int:
    """As many as fit side by side below a chart."""
    return min(len(names), 3 if max(map(len, names)) <= 12 else 2)


def _legend_rows(names: Collection[str]) -> int:
    return math.ceil(len(names) / _legend_columns(names))


def _rows_figure(rows: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.48 * rows), layout="constrained")
    return figure, figure.add_subplot()


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [textwrap.fill(name, 16, break_long_words=True) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def box_plot(comparison: Comparison, metric: Metric) -> str:
    """Distribution over cases, one row per method: quartiles, whiskers to 1.5 times their distance, cases."""
    methods = list(comparison.evaluations)
    colours = method_colours(methods)
    random = np.random.default_rng(0)
    with mpl.rc_context(_STYLE):
        figure, axis = _rows_figure(len(methods))
        for row, name in enumerate(methods):
            values = comparison.evaluations[name].per_case(metric.name) * metric.scale
            values = values[~np.isnan(values)]
            axis.boxplot(
                values,
                positions=[row],
                orientation="horizontal",
                widths=0.6,
                showfliers=False,
                manage_ticks=False,
                medianprops={"color": "black", "linewidth": 2},
                boxprops={"color": colours[name], "linewidth": 1.5},
                whiskerprops={"color": colours[name]},
                capprops={"color": colours[name]},
            )
            axis.scatter(
                values, row + random.uniform(-0.18, 0.18, values.size), s=9, color=colours[name], alpha=0.5, lw=0
            )
        _name_rows(axis, methods)
        axis.set_xlabel(metric.heading)
        return to_svg(figure)


def difference_plot(comparison: Comparison, metric: Metric) -> str:
    """Differences to the reference by case, with their mean and bootstrap 95% interval."""
    methods = list(comparison.evaluations)
    colours = method_colours(methods)
    others = [name for name in methods if name != comparison.reference]
    reference = comparison.evaluations[comparison.reference]
    random = np.random.default_rng(0)
    with mpl.rc_context(_STYLE):
        figure, axis = _rows_figure(len(others))
        axis.axvline(0, color=GREY, linewidth=1)
        for row, name in enumerate(others):
            own, base = paired_values([comparison.evaluations[name], reference], metric.name)
            values = (own - base) * metric.scale
            values = values[~np.isnan(values)]
            heights = row + 0.14 + random.uniform(0, 0.2, values.size)
            axis.scatter(values, heights, s=9, color=colours[name], alpha=0.5, lw=0)
            paired = comparison.row(name, metric).paired
            if paired is None or math.isnan(paired.difference):
                continue
            mean = paired.difference * metric.scale
            low, high = (mean if math.isnan(edge) else edge * metric.scale for edge in paired.interval)
            axis.plot([low, high], [row - 0.12] * 2, color="black", linewidth=2.5, solid_capstyle="butt")
            axis.plot(mean, row - 0.12, "D", color="black", markerfacecolor=colours[name], markersize=7)
        _name_rows(axis, others)
        unit = "percentage points" if metric.unit == "%" else metric.unit
        short = textwrap.shorten(comparison.reference, 20, placeholder="...")
        axis.set_xlabel(f"{metric.title} minus {short} ({unit})")
        return to_svg(figure)


def cost_plot(comparison: Comparison, costs: Mapping[str, float], label: str) -> str:
    """Dice (mean and standard error) against a cost on a logarithmic axis; methods without one are left out."""
    methods = list(comparison.evaluations)
    colours, markers = method_colours(methods), _markers(methods)
    with mpl.rc_context(_STYLE):
        known = [name for name in methods if name in costs]
        figure = Figure(figsize=(_WIDTH, 2.9 + 0.25 * _legend_rows(known)), layout="constrained")
        axis = figure.add_subplot()
        for name in known:
            summary = comparison.row(name, DICE).summary
            error = 0.0 if math.isnan(summary.standard_error) else summary.standard_error * DICE.scale
            axis.errorbar(
                costs[name], summary.mean * DICE.scale, error, fmt=markers[name], color=colours[name], markersize=9,
                capsize=3, label=textwrap.fill(name, 22),
            )  # fmt: skip
        axis.set_xscale("log")
        smallest, largest = min(costs[name] for name in known), max(costs[name] for name in known)
        axis.set_xlim(smallest / 1.6, largest * 1.6)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel(label)
        axis.set_ylabel(DICE.heading)
        figure.legend(loc="outside lower center", ncols=_legend_columns(known), frameon=False)
        return to_svg(figure)


def curves_plot(curves: Mapping[str, Sequence[float]], colours: Mapping[str, str], label: str) -> str:
    """One line per run over epochs.

    Args:
        curves: values per epoch, by run; NaN leaves a gap.
        colours: by method, in the order of the comparison.
        label: of the vertical axis.
    """
    styles = ("-", "--", "-.", ":")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.7 + 0.25 * _legend_rows(curves)), layout="constrained")
        axis = figure.add_subplot()
        for name, values in curves.items():
            style = styles[list(colours).index(name) % len(styles)]  # the same in every chart
            axis.plot(
                np.arange(1, len(values) + 1), values, style, color=colours[name], linewidth=1.8,
                label=textwrap.fill(name, 22),
            )  # fmt: skip
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        figure.legend(loc="outside lower center", ncols=_legend_columns(curves), frameon=False)
        return to_svg(figure)
