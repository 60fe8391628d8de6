"""How much of a teacher's details a student's features hold, and how much of it DCD's projections have found.

Per encoder stage, the share of the energy of the teacher's detail ``P_D(T)`` that ``P_D(phi(S))`` explains, on real batches:
1 minus DCD's stage loss over the loss of a student whose features are zero. *Learned*: with the projection that was
trained beside the student; *best*: with the least-squares projection, fitted on one half of the batches; both measured on the
other half. Best minus learned is what the projection still has to learn. *Any student*: what no student with so few channels
can exceed, the share of the teacher's leading principal components, as many as the student has channels. Below 0 is worse
than nothing.

Needs:   nnU-Net's three variables; the model folder of a student distilled with DCD, whose teacher, settings and projections are
         used; any number of other students of the same plan, whose features are looked at beside it.
Usage:   ``python benchmarks/projection_fit.py [--fold F] [--batches N] NAME=DCD_MODEL [NAME=STUDENT_MODEL...]``
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gradient_norms import batches_of, trainer_of

from nnunet_kd.distillation.features import find_encoder, plain_module
from nnunet_kd.distillation.objectives.dcd import DCD, DCDSettings
from nnunet_kd.losses.wavelets import detail_projection
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.training.trainer import DistillationTrainer


@dataclass
class Products:
    """Sums over batches and voxels of one stage's details: ``S S^T (Cs, Cs)``, ``T S^T (Ct, Cs)``, ``T T^T (Ct, Ct)``."""

    student: torch.Tensor
    mixed: torch.Tensor
    teacher: torch.Tensor

    def best(self) -> torch.Tensor:
        """The least-squares projection ``(Ct, Cs)``."""
        solution: torch.Tensor = torch.linalg.lstsq(self.student, self.mixed.T).solution
        return solution.T

    def explained(self, weight: torch.Tensor) -> float:
        """Share of the teacher's energy that ``weight (Ct, Cs)`` explains."""
        weight = weight.to(self.student.dtype)
        gained = 2 * (weight * self.mixed).sum() - (weight @ self.student * weight).sum()
        return float(gained.detach() / self.teacher.trace())

    def possible(self) -> float:
        """Share of the teacher's energy in its ``Cs`` leading principal components."""
        energies = torch.linalg.eigvalsh(self.teacher)
        return float(energies[-len(self.student) :].sum() / energies.sum())


@torch.no_grad()
def products(trainer: DistillationTrainer, batches: Sequence[dict[str, Any]]) -> list[Products]:
    """One per encoder stage, finest first."""
    assert trainer.supervision is not None
    teachers = trainer.supervision.teachers
    assert teachers is not None
    settings = trainer.settings.active_objectives()["dcd"]
    assert isinstance(settings, DCDSettings)
    encoder = find_encoder(plain_module(trainer.network))
    found: list[Products] = []
    for batch in batches:
        teacher_features, _ = teachers.outputs(batch["data"], 0, features=True, logits=False)
        for stage, features in enumerate(zip(encoder(batch["data"]), teacher_features, strict=True)):
            # the teacher's are inference tensors, which only a copy makes usable here
            student, teacher = (
                detail_projection(one.clone(), settings.wavelet, settings.levels, settings.mode, settings.bands)
                .transpose(0, 1)
                .flatten(1)
                .double()
                for one in features
            )
            new = Products(student @ student.T, teacher @ student.T, teacher @ teacher.T)
            if stage == len(found):
                found.append(new)
            else:
                found[stage].student += new.student
                found[stage].mixed += new.mixed
                found[stage].teacher += new.teacher
    return found


def main() -> None:
    """Print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="the first one distilled with DCD")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--batches", type=int, default=16)
    options = parser.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    models = {name: Path(folder) for name, _, folder in (one.partition("=") for one in options.models)}
    distilled = next(iter(models))
    rows: dict[str, list[float]] = {}
    with trainer_of(models[distilled], options.fold, fresh=False) as trainer:
        assert trainer.supervision is not None
        objective = trainer.supervision.distillation.all_objectives()["dcd"]
        assert isinstance(objective, DCD)
        learned = [projection.get_parameter("weight") for projection in objective.projections]
        batches = batches_of(trainer, options.batches)
        for name, model in models.items():
            checkpoint = read_checkpoint(model / f"fold_{options.fold}" / "checkpoint_final.pth")
            plain_module(trainer.network).load_state_dict(checkpoint["network_weights"])
            fit, test = (products(trainer, half) for half in (batches[::2], batches[1::2]))
            if name == distilled:
                rows[f"{name}, learned"] = [one.explained(weight) for one, weight in zip(test, learned, strict=True)]
            rows[f"{name}, best"] = [one.explained(other.best()) for one, other in zip(test, fit, strict=True)]
    rows["any student"] = [one.possible() for one in test]
    stages = range(len(learned))
    print(f"| projection | {' | '.join(f'stage {stage}' for stage in stages)} |\n| --- |{' ---: |' * len(stages)}")
    for name, shares in rows.items():
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |")


if __name__ == "__main__":
    main()
