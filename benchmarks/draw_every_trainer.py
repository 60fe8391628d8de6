"""Draw the losses of `every_trainer.sh`: one panel per trainer, its segmentation loss and its objectives over epochs.

Usage: ``python benchmarks/draw_every_trainer.py RESULTS CURVES.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

COLUMNS = 4


def histories(results: Path) -> dict[str, list[dict[str, float]]]:
    """Mean losses per epoch of every finished run, by the trainer's name without ``nnUNetTrainer``."""
    found = {}
    for path in sorted(results.glob("Dataset004_Hippocampus/*__3d_fullres/fold_0/checkpoint_final.pth")):
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        found[path.parent.parent.name.split("__")[0].removeprefix("nnUNetTrainer")] = checkpoint["nnunet_kd"]["history"]
    return found


def main() -> None:
    """Draw all runs into one picture and print each loss at the first and the last epoch."""
    runs = histories(Path(sys.argv[1]))
    rows = -(-len(runs) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).ravel()
    for axis, (name, history) in zip(axes, runs.items(), strict=False):
        axis.plot([epoch["segmentation"] for epoch in history], color="#0072B2", label="segmentation")
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        objectives = [term for term in history[-1] if "/" not in term and term != "segmentation"]
        lines = axis.get_lines()
        if objectives:
            other = axis.twinx()
            other.tick_params(labelsize=7)
            for term, style in zip(objectives, ("-", "--"), strict=False):
                values = [epoch.get(term, float("nan")) for epoch in history]
                lines += other.plot(values, color="#D55E00", linestyle=style, label=f"{term} (right)")
        axis.legend(lines, [line.get_label() for line in lines], fontsize=7)
        for term in ["segmentation", *objectives]:
            values = [epoch[term] for epoch in history if term in epoch]
            print(f"{name}: {term} {values[0]:.4f} -> {values[-1]:.4f}")
    for axis in axes[len(runs) :]:
        axis.set_visible(False)
    figure.supxlabel("epoch of 20 iterations", fontsize=9)
    figure.savefig(sys.argv[2], dpi=100)


if __name__ == "__main__":
    main()
