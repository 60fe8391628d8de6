"""Draw the proof: Dice against minutes, and every single training (docs/explanation-proof.md).

    python benchmarks/draw_proof.py [--kept FOLDER] [--images FOLDER]

Writes ``proof-minutes.png`` and ``proof-trainings.png`` (default: into ``docs/images``) from what ``proof.py`` and
``proof_minutes.py`` kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from proof_values import DATASETS, INHERITED, KEPT, LONGER, PLAIN, ROOT, Proof, read_proof

COLOURS = {
    PLAIN: "#999999", "random-dcd": "#E69F00", INHERITED: "#0072B2", "inherited-soft": "#009E73",
    "inherited-dcd": "#D55E00", "inherited-soft-dcd": "#CC79A7", LONGER: "#000000",
}  # fmt: skip


def draw_minutes(proofs: Sequence[Proof], path: Path) -> Figure:
    """Dice against minutes with the teacher's line; single trainings are faint. Returns what was drawn."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axis, proof in zip(figure.subplots(1, len(proofs), squeeze=False)[0], proofs, strict=True):
        axis.axhline(proof.teacher, color="black", linewidth=1, linestyle="--")
        place = axis.get_yaxis_transform()
        axis.text(0.99, proof.teacher, "teacher", transform=place, ha="right", va="bottom", fontsize=8)
        for row in (PLAIN, INHERITED):
            if points := proof.curve(row):
                draw_points(axis, row, points, "D-")
        for row in (row for row in proof.trained if row not in (PLAIN, INHERITED, LONGER)):
            draw_points(axis, row, {proof.minutes_of(row): proof.values(row)}, "D")
        axis.set_xlabel(f"minutes, {proof.minutes.get('threads', '?')} CPU threads, all before and in the iterations")
        axis.set_ylabel("Dice (%), validation cases")
        axis.set_title(DATASETS[proof.name])
        axis.grid(alpha=0.3)
    named = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=len(named), fontsize=8)
    figure.savefig(path, dpi=110)
    return figure


def draw_points(axis: Any, row: str, points: Mapping[float, Sequence[float]], style: str) -> None:
    """Single trainings and their means."""
    for minutes, values in points.items():
        axis.plot([minutes] * len(values), values, "o", color=COLOURS[row], alpha=0.35, markersize=4)
    means = [np.mean(values) for values in points.values()]
    axis.plot(list(points), means, style, color=COLOURS[row], label=row)


def draw_trainings(proofs: Sequence[Proof], path: Path) -> Figure:
    """Every single training's Dice by row. Returns what was drawn."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, proof in zip(figure.subplots(1, len(proofs), squeeze=False)[0], proofs, strict=True):
        axis.axvline(proof.teacher, color="black", linewidth=1, linestyle="--")
        for place, row in enumerate(proof.trained):
            values = proof.values(row)
            axis.plot(values, [place] * len(values), "o", color=COLOURS[row], alpha=0.5)
            axis.plot(np.mean(values), place, "|", color=COLOURS[row], markersize=18, markeredgewidth=2)
        axis.set_yticks(range(len(proof.trained)), proof.trained)
        axis.invert_yaxis()
        axis.set_xlabel("Dice (%) of each training; dashed: the teacher")
        axis.set_title(DATASETS[proof.name])
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    return figure


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, default=KEPT, help="what proof.py --keep and proof_minutes.py wrote")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="where the pictures are written")
    options = parser.parse_args()
    trained = [proof for name in DATASETS if (proof := read_proof(name, options.kept)).trained]
    if trained:
        draw_trainings(trained, options.images / "proof-trainings.png")
    if measured := [proof for proof in trained if proof.minutes]:
        draw_minutes(measured, options.images / "proof-minutes.png")


if __name__ == "__main__":
    main()
