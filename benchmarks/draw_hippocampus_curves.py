"""Draw the curves of results/hippocampus/README.md, from the two students under nnUNet_results."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

STUDENTS = {"student": "nnUNetTrainerStudent", "student, DCD": "nnUNetTrainerDCD"}


def draw(root: Path, to: Path) -> None:
    """Training curves of both students: segmentation loss, nnU-Net's pseudo Dice, DCD's loss per stage."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, dice, stages = figure.subplots(1, 3)
    for (name, trainer), colour in zip(STUDENTS.items(), ("#0072B2", "#D55E00"), strict=True):
        path = root / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        history = checkpoint["nnunet_kd"]["history"]
        loss.plot([epoch["segmentation"] for epoch in history], color=colour, label=name)
        dice.plot(checkpoint["logging"]["mean_fg_dice"], color=colour, label=name)
        for stage, style in enumerate(("-", "--", "-.", ":")):
            if f"dcd/stage{stage}" in history[0]:
                values = [epoch[f"dcd/stage{stage}"] for epoch in history]
                stages.plot(values, color=colour, linestyle=style, label=f"stage {stage}")
    titles = ("segmentation loss (training)", "pseudo Dice (validation patches)", "DCD loss per stage (unweighted)")
    for axis, title in zip((loss, dice, stages), titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch of 100 iterations")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(to, dpi=110)


def main() -> None:
    """Usage: ``python benchmarks/draw_hippocampus_curves.py CURVES.png``."""
    draw(Path(os.environ["nnUNet_results"]) / "Dataset004_Hippocampus", Path(sys.argv[1]))


if __name__ == "__main__":
    main()
