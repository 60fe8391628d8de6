"""Draw what a training step costs with every objective: time at the hippocampus shape, memory at the BraTS shape.

Usage: ``python benchmarks/draw_step_costs.py benchmarks/results/performance/training-step.md docs/images/step-costs.png``.
Reads the tables that ``nnunet-kd bench step --all`` and ``bench size`` print.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

STUDENT, TEACHER, LEAST = "#0072B2", "#D55E00", "#000000"


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its first two lines."""
    lines = [line for line in page.split(f"## {heading}")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(cell: str) -> float:
    """The first number of a cell."""
    return float(cell.split()[0])


def main() -> None:
    """See the module."""
    page = Path(sys.argv[1]).read_text()
    times = {cells[0].removeprefix("nnUNetTrainer"): cells for cells in rows_of(page, "Hippocampus shape")}
    alone = {part: number(times[part][1]) for part in ("student step", "teacher encoder", "teacher forward")}
    memory = {cells[0]: cells for cells in rows_of(page, "BraTS shape")}
    names = [
        "Student",
        *sorted((name for name in memory if name != "Student"), key=lambda name: number(times[name][1])),
    ]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(names):
        if name == "Student":
            took, least = alone["student step"], alone["student step"]
        else:
            took = number(times[name][1])
            teacher = alone["teacher encoder" if "encoder" in times[name][2] else "teacher forward"]
            least = alone["student step"] + teacher
        left.barh(place, took, color=STUDENT if name == "Student" else TEACHER, height=0.7)
        left.plot([least, least], [place - 0.42, place + 0.42], color=LEAST, linewidth=2)
        left.text(took + 40, place, f"{took:.0f}", va="center", fontsize=8)
        needs, at_least = number(memory[name][1]), number(memory[name][2])
        right.barh(place, needs, color=STUDENT if name == "Student" else TEACHER, height=0.7)
        right.plot([at_least, at_least], [place - 0.42, place + 0.42], color=LEAST, linewidth=2)
        right.text(needs + 0.2, place, f"{needs:.1f}", va="center", fontsize=8)
    left.set_yticks(range(len(names)), ["the student alone", *names[1:]])
    left.invert_yaxis()
    left.set_xlabel("ms a step, hippocampus shape\nblack: student's step + teacher's forward, measured alone")
    right.set_xlabel("GiB at the peak of a step, BraTS shape\nblack: what no step can avoid")
    left.margins(x=0.12)
    right.margins(x=0.12)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
