"""How large each objective's gradient to the student is, against the segmentation loss's, on real batches.

For every model: the norm of the gradient of its weighted distillation loss over that of the segmentation loss, both to the
student's encoder, and the cosine between them: medians over batches, and of the gradients' means over batches. The
optimizer's momentum (0.99) follows such means, in which what differs from batch to batch cancels. A ratio far below 1 means
that the weight makes no difference, one far above 1 that the labels do not count; a negative cosine means that the two
disagree. *Steady*: the share of a gradient that is left in its mean, norm of the mean over mean norm; 1 over the square root
of the number of batches is what pure noise leaves.

Needs:   nnU-Net's three variables; model folders of distilled students, for example those of ``benchmarks/every_trainer.sh``,
         whose learned projections are used.
Usage:   ``python benchmarks/gradient_norms.py [--fresh] [--batches N] MODEL...``; ``--fresh``: as at the start of the training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE, SETTINGS_FILE
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.nnunet.environment import find_trainer
from nnunet_kd.training.gradient_shares import encoder_gradients, in_temporary_results, ratio_and_cosine
from nnunet_kd.training.trainer import DistillationTrainer


@contextlib.contextmanager
def trainer_of(model: Path, fold: str, fresh: bool) -> Iterator[DistillationTrainer]:
    """The trainer that made ``model``, with its settings, ready to take a step; writes only to a temporary folder."""
    path = model / f"fold_{fold}" / "checkpoint_final.pth"
    checkpoint = read_checkpoint(path)
    arguments = checkpoint["init_args"]
    os.environ[CONFIG_VARIABLE] = str(model / f"fold_{fold}" / SETTINGS_FILE)
    os.environ[SET_VARIABLE] = json.dumps(["seed=0"])

    def make() -> DistillationTrainer:
        found: DistillationTrainer = find_trainer(checkpoint["trainer_name"])(
            {**arguments["plans"], "continue_training": False},
            arguments["configuration"], arguments["fold"], arguments["dataset_json"], torch.device("cpu"),
        )  # fmt: skip
        return found

    with contextlib.redirect_stdout(io.StringIO()), in_temporary_results(make) as trainer:
        trainer.initialize()
        if not fresh:
            trainer.load_checkpoint(str(path))
        trainer.prepare_distillation()
        with contextlib.redirect_stdout(sys.__stdout__):
            yield trainer


def batches_of(trainer: nnUNetTrainer, count: int) -> list[dict[str, Any]]:
    """Batches of nnU-Net's own loader, augmented as in training."""
    with contextlib.redirect_stdout(io.StringIO()):
        loader, _ = trainer.get_dataloaders()
    return [next(loader) for _ in range(count)]


def row(trainer: DistillationTrainer, batches: list[dict[str, Any]]) -> list[str]:
    """The figures of one model: ratio and cosine per batch, of the means, and how steady either gradient is."""
    both = [encoder_gradients(trainer, batch) for batch in batches]
    found = [(torch.stack(list(gradients.values())).sum(0), labels) for labels, gradients in both]
    each = [ratio_and_cosine(*pair) for pair in found]
    ratio, cosine = (statistics.median(values) for values in zip(*each, strict=True))
    all_of_one = [torch.stack(one) for one in zip(*found, strict=True)]
    mean_ratio, mean_cosine = ratio_and_cosine(*(one.mean(0) for one in all_of_one))
    steady = [float(one.mean(0).norm() / one.norm(dim=1).mean()) for one in all_of_one]
    return [
        f"{ratio:.3g}",
        f"{cosine:+.2f}",
        f"{mean_ratio:.3g}",
        f"{mean_cosine:+.2f}",
        *(f"{value:.2f}" for value in steady),
    ]


def main() -> None:
    """Print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--fresh", action="store_true", help="untrained student and projections")
    parser.add_argument("--batches", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    columns = "ratio | cosine | ratio of means | cosine of means | steady | steady, segmentation"
    print(f"| trainer | state | {columns} |\n| --- | --- |{' ---: |' * 6}")
    for model in options.models:
        with trainer_of(model, options.fold, options.fresh) as trainer:
            if trainer.supervision is None:
                continue
            figures = row(trainer, batches_of(trainer, options.batches))
        state = "fresh" if options.fresh else f"after {trainer.current_epoch} epochs"
        name = model.name.split("__")[0].removeprefix("nnUNetTrainer")
        print(f"| {name} | {state} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
