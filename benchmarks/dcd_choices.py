"""What each choice of DCD's ablation changes in the gradient to a student, on the same student and real batches.

For every variant of ``hippocampus-ablation.yaml``: the norm of its weighted loss's gradient to the student's encoder over
that of DCD, the cosine between the two, and the norms stage by stage, each over that of DCD's own loss of that stage; medians
over batches. Where the cosine is near 1 a choice is little more than another weight, and a training with it little more than
another training of DCD. A variant that chooses only when DCD begins has the loss of another and is left out.

Needs:   nnU-Net's three variables; the model folder of a student distilled with DCD, whose learned projections are used.
Usage:   ``python benchmarks/dcd_choices.py [--fresh] [--batches N] [--against VARIANT] MODEL``; ``--fresh``: as at the start
         of the training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from gradient_norms import batches_of, trainer_of

from nnunet_kd.distillation.features import find_encoder, plain_module
from nnunet_kd.distillation.objectives.dcd import DCD, DCDSettings
from nnunet_kd.distillation.settings_sources import merge, read_settings_file
from nnunet_kd.training.gradient_shares import ITERATION, flat_gradient, ratio_and_cosine
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.sweep.description import Variant

ABLATION = Path(__file__).with_name("hippocampus-ablation.yaml")


def variants() -> dict[str, DCDSettings]:
    """DCD's settings by the ablation's names, DCD itself first."""
    found = {"dcd": DCDSettings()}
    for name, values in read_settings_file(str(ABLATION))["variants"].items():
        variant = Variant.model_validate(values)
        recipe: dict[str, Any] = read_settings_file(variant.recipe) if variant.recipe else {}
        settings = DCDSettings.model_validate(merge(recipe, variant.settings)["objectives"]["dcd"])
        loss = settings.model_copy(update={"schedule": found["dcd"].schedule})
        if loss not in found.values():
            found[name] = loss
    return found


def stage_gradients(
    trainer: DistillationTrainer, batch: dict[str, Any], chosen: dict[str, DCDSettings]
) -> dict[str, torch.Tensor]:
    """Every variant's gradients to the student's encoder, of its weighted loss of each stage ``(stages, N)``."""
    assert trainer.supervision is not None
    objectives = trainer.supervision.distillation.all_objectives()
    objective = objectives["dcd"]
    assert isinstance(objective, DCD)
    network = plain_module(trainer.network).train()
    parameters = list(find_encoder(network).parameters())
    trainer.supervision.start_step(trainer.current_epoch, ITERATION, objectives)
    try:
        step = trainer.supervision.outputs(network(batch["data"]), batch["target"])
        gradients = {}
        for name, settings in chosen.items():
            objective.settings = settings
            terms = objective(step).values()
            gradients[name] = torch.stack([flat_gradient(settings.weight * term, parameters) for term in terms])
    finally:
        trainer.supervision.finish_step()
    return gradients


def figures(gradients: dict[str, torch.Tensor], against: str) -> dict[str, torch.Tensor]:
    """By variant: ratio and cosine of the whole loss's gradient, then each stage's ratio ``(2 + stages,)``."""
    reference = gradients[against]
    return {
        name: torch.tensor(
            [*ratio_and_cosine(own.sum(0), reference.sum(0)), *(own.norm(dim=1) / reference.norm(dim=1)).tolist()]
        )
        for name, own in gradients.items()
    }


def main() -> None:
    """Print one row per variant."""
    chosen = variants()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--fresh", action="store_true", help="untrained student and projections")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--against", default="dcd", choices=list(chosen))
    options = parser.parse_args()
    with trainer_of(options.model, options.fold, options.fresh) as trainer:
        batches = batches_of(trainer, options.batches)
        each = [figures(stage_gradients(trainer, batch, chosen), options.against) for batch in batches]
    rows = {name: torch.stack([one[name] for one in each]).median(0).values.tolist() for name in chosen}
    stages = range(len(rows["dcd"]) - 2)
    print(f"| variant | norm | cosine | {' | '.join(f'stage {stage}' for stage in stages)} |")
    print(f"| --- |{' ---: |' * (2 + len(stages))}")
    for name, (ratio, cosine, *by_stage) in rows.items():
        print(f"| {name} | {ratio:.2g} | {cosine:+.2f} | {' | '.join(f'{value:.2g}' for value in by_stage)} |")


if __name__ == "__main__":
    main()
