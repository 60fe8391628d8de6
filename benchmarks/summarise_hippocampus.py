"""Print the table of docs/results.md and draw its curves, from what `hippocampus.sh` left under nnUNet_results."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

MODELS = {"teacher": "nnUNetTrainer_20epochs", "student": "nnUNetTrainerStudent", "student, DCD": "nnUNetTrainerDCD"}
CLASSES = {"1": "anterior", "2": "posterior"}


def dice_per_case(folder: Path) -> np.ndarray:
    """``(cases, classes)`` of nnU-Net's own evaluation, cases in the order of their names."""
    cases = sorted(
        json.loads((folder / "summary.json").read_text())["metric_per_case"], key=lambda case: case["prediction_file"]
    )
    return np.array([[case["metrics"][label]["Dice"] for label in CLASSES] for case in cases])


def draw(root: Path, to: Path) -> None:
    """Training curves of both students: segmentation loss, nnU-Net's pseudo Dice, DCD's loss per stage."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, dice, stages = figure.subplots(1, 3)
    for (name, trainer), colour in zip(list(MODELS.items())[1:], ("#0072B2", "#D55E00"), strict=True):
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
    """Usage: ``python benchmarks/summarise_hippocampus.py CURVES.png``."""
    root = Path(os.environ["nnUNet_results"]) / "Dataset004_Hippocampus"
    print("| model | " + " | ".join(f"Dice {name}" for name in CLASSES.values()) + " | mean Dice |\n|-|-|-|-|")
    scores = {name: dice_per_case(root / "predictions" / trainer) for name, trainer in MODELS.items()}
    for name, values in scores.items():
        columns = [*values.T, values.mean(axis=1)]
        cells = [f"{column.mean():.4f} ± {column.std(ddof=1) / len(column) ** 0.5:.4f}" for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    difference = (scores["student, DCD"] - scores["student"]).mean(axis=1)
    error = difference.std(ddof=1) / len(difference) ** 0.5
    print(f"\nDCD minus student, paired over {len(difference)} cases: {difference.mean():+.4f} ± {error:.4f}")
    draw(root, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
