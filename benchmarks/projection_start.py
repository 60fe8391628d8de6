"""The loss of every objective with projections at iteration 0: projections fitted, against random ones.

    python benchmarks/projection_start.py 4 3d_fullres 5 -t TEACHER --device cpu

Twice the same student, started inside the teacher, with all objectives at once and the settings of their recipes (CWD: of
features). Losses are unweighted means over the same augmented training batches. Nothing is trained but FreeKD's prompts, which
have to be there before it has a loss. Where fitting does not lower a loss, ``projection_start`` should stay random.

Needs nnU-Net's three variables and the trained teacher.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.distillation.settings_sources import SET_VARIABLE, read_settings_file
from nnunet_kd.distillation.weighting import sum_of
from nnunet_kd.evaluation.tables import Table
from nnunet_kd.nnunet.environment import find_trainer, method_trainer, variables_set_to
from nnunet_kd.nnunet.training import trainer_of_dataset
from nnunet_kd.system.files import write_atomically
from nnunet_kd.training.gradient_shares import in_temporary_results, prepare_objectives, step_outputs
from nnunet_kd.training.trainer import DistillationTrainer

METHODS = ("dcd", "fitnet", "fgbvd", "fopro", "freekd", "cwd")
STARTS = ("random", "fitted")
OWN = {"cwd": {"maps": "features"}}
"""Without it, CWD compares logits and has no projections."""


def assignments(methods: Sequence[str], projection_start: str, prompt_iterations: int) -> list[str]:
    """Settings with all objectives at once, as their recipes have them."""
    found = []
    for method in methods:
        recipe = read_settings_file(find_trainer(method_trainer(method)).recipe)
        settings = {**recipe["objectives"][method], **OWN.get(method, {}), "projection_start": projection_start}
        if method == "freekd":
            settings["prompt_iterations"] = prompt_iterations
        found += [f"objectives.{method}.{key}={json.dumps(value)}" for key, value in settings.items()]
    return found


def losses_at_the_start(
    place: tuple[str, str, int | str], given: Sequence[str], methods: Sequence[str], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """By kind of start, every objective's loss.

    Args:
        place: dataset, configuration and fold.
        given: further settings.
        methods: objectives.
        options: ``batches``, ``prompt_iterations`` and ``device``.
    """

    def make() -> DistillationTrainer:
        made: DistillationTrainer = trainer_of_dataset(
            *place, "nnUNetTrainerKD", "nnUNetPlans", torch.device(options.device)
        )
        return made

    batches: list[dict[str, Any]] = []
    losses = {}
    with variables_set_to({"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}):
        for start in STARTS:
            own = assignments(methods, start, options.prompt_iterations)
            os.environ[SET_VARIABLE] = json.dumps(["start=teacher", "seed=0", *own, *given])
            with contextlib.redirect_stdout(io.StringIO()), in_temporary_results(make) as trainer:
                trainer.prepare_distillation()
                if not batches:
                    loader, _ = trainer.get_dataloaders()
                    batches = [next(loader) for _ in range(options.batches)]
                prepare_objectives(trainer, batches)
                losses[start] = measure_losses(trainer, batches)
    return losses


@torch.no_grad()
def measure_losses(trainer: DistillationTrainer, batches: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Every objective's unweighted loss, mean over batches, of a prepared trainer; see ``prepare_objectives``."""
    assert trainer.supervision is not None
    distillation = trainer.supervision.distillation
    plain_module(trainer.network).train()
    found: dict[str, list[float]] = {}
    for batch in batches:
        with step_outputs(trainer, batch) as (step, _, _):
            for name in distillation.all_objectives():
                if terms := distillation.terms(name, step):
                    found.setdefault(name, []).append(float(sum_of(terms)))
    return {name: statistics.fmean(values) for name, values in found.items()}


def table(losses: dict[str, dict[str, float]]) -> Table:
    """One row per objective."""
    random, fitted = (losses[start] for start in STARTS)
    rows = [
        (name, f"{value:.4g}", f"{fitted[name]:.4g}", f"{fitted[name] / value:.2f}") for name, value in random.items()
    ]
    return Table("Loss at iteration 0", ("Objective", "Random", "Fitted", "Fitted / random"), tuple(rows))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("fold")
    parser.add_argument("-t", "--teacher", help="model folder; default: searched for")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--prompt-iterations", type=int, default=20, help="that tune FreeKD's prompts before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any further setting")
    parser.add_argument("--output", type=Path, help="also write the table here, as Markdown")
    options = parser.parse_args()
    fold: int | str = options.fold if options.fold == "all" else int(options.fold)
    teacher = [f"teacher.path={json.dumps(str(Path(options.teacher).resolve()))}"] if options.teacher else []
    place = (options.dataset, options.configuration, fold)
    shown = table(losses_at_the_start(place, [*teacher, *options.set], options.methods.split(","), options)).markdown()
    print(shown)
    if options.output is not None:
        write_atomically(options.output, lambda file: file.write(shown.encode()))


if __name__ == "__main__":
    main()
