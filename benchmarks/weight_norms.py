"""How far training has blown a student's convolutions up, which slows it down.

A convolution in front of an instance norm computes the same whatever its scale, so that only its direction learns, at a rate
that falls with the square of its norm (van Laarhoven, *L2 Regularization versus Batch and Weight Normalization*, arXiv
1706.05350). Steps that are large against the labels' make the norm grow, and nnU-Net's weight decay (3e-5) takes it back only
in much longer trainings. *Pace*: the square of the first model's norm over that of this model, geometric mean over the
convolutions: the share of its learning rate that is left.

Needs:   model folders of the same plan, the student without a teacher first.
Usage:   ``python benchmarks/weight_norms.py [--fold FOLD] MODEL...``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nnunet_kd.models.checkpoint import read_checkpoint


def norms(model: Path, fold: str) -> dict[str, float]:
    """Norm of every convolution that an instance norm follows, by name, encoder first."""
    weights = read_checkpoint(model / f"fold_{fold}" / "checkpoint_final.pth")["network_weights"]
    # the same module has several names: a block's list of all, the decoder's encoder
    named = {
        name: value
        for name, value in weights.items()
        if name.endswith(".conv.weight") and "decoder.encoder" not in name
    }
    return {name: float(value.float().norm()) for name, value in named.items()}


def main() -> None:
    """Print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--fold", default="0")
    options = parser.parse_args()
    columns = "first convolution | last of the encoder | pace, encoder | pace, decoder"
    print(f"| model | {columns} |\n| --- |{' ---: |' * 4}")
    base: dict[str, float] = {}
    for model in options.models:
        found = norms(model, options.fold)
        base = base or found
        encoder = [name for name in found if name.startswith("encoder")]
        decoder = [name for name in found if name not in encoder]
        paces = [
            float(np.exp(np.mean([2 * np.log(base[name] / found[name]) for name in part])))
            for part in (encoder, decoder)
        ]
        name = model.name.split("__")[0].removeprefix("nnUNetTrainer")
        cells = [f"{found[encoder[0]]:.1f}", f"{found[encoder[-1]]:.1f}", *(f"{pace:.0%}" for pace in paces)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
