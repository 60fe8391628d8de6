"""Objectives' gradients, against gradients that a training step itself makes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nnunet_kd.cli.weigh import _table, _what_to_do
from nnunet_kd.errors import DataError
from nnunet_kd.training.gradient_shares import (
    ITERATION,
    GradientShare,
    encoder_gradients,
    in_temporary_results,
    measure_shares,
)
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import random_batch
from tests.training.tiny_trainer import ready, trainer


def gradient_of_a_step(made: DistillationTrainer, batch: dict) -> torch.Tensor:
    """Of labels and objectives together, by PyTorch's own backward pass."""
    made.supervision.start_step(0, ITERATION)
    made._in_train_step = True
    made.network.zero_grad()
    made.loss(made.network(batch["data"]), batch["target"]).backward()
    made._in_train_step = False
    made.supervision.finish_step()
    return torch.cat([parameter.grad.flatten() for parameter in made.network.encoder.parameters()])


@pytest.mark.parametrize("name", ["nnUNetTrainerDCD", "nnUNetTrainerCWD"])
def test_labels_and_objective_add_up_to_a_steps_gradient(tiny: dict, name: str) -> None:
    made = ready(name, tiny)
    batch = random_batch(made)
    labels, gradients = encoder_gradients(made, batch)
    (gradient,) = gradients.values()
    whole = gradient_of_a_step(made, batch)
    assert gradient.norm() > 0
    torch.testing.assert_close(labels + gradient, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_with_the_equal_weight_an_objectives_gradient_is_as_large_as_the_labels(tiny: dict) -> None:
    made = ready("nnUNetTrainerCWD", tiny)
    batches = [random_batch(made, seed) for seed in range(3)]
    (share,) = measure_shares(made, batches)
    assert (share.objective, share.weight, len(share.ratios)) == ("cwd", 3, 3)
    assert -1 <= share.cosine <= 1
    (equal,) = measure_shares(ready("nnUNetTrainerCWD", tiny, f"objectives.cwd.weight={share.equal_weight}"), batches)
    assert equal.ratio == pytest.approx(1, rel=1e-3)


def test_an_objective_is_weighed_at_its_schedules_height(tiny: dict) -> None:
    batch = random_batch(ready("nnUNetTrainerDCD", tiny))
    (always,) = measure_shares(ready("nnUNetTrainerDCD", tiny), [batch])
    (later,) = measure_shares(ready("nnUNetTrainerDCD", tiny, "objectives.dcd.schedule={start: 5}"), [batch])
    assert later == always


def test_an_objective_with_a_phase_of_its_own_gets_through_it_first(tiny: dict) -> None:
    batches = [random_batch(ready("nnUNetTrainerFreeKD", tiny), seed) for seed in range(2)]
    made = ready("nnUNetTrainerFreeKD", tiny, "objectives.freekd.prompt_iterations=5")
    objective = made.supervision.distillation.all_objectives()["freekd"]
    network = {name: value.clone() for name, value in made.network.state_dict().items()}
    masks = [parameter.clone() for parameter in objective.prompts.parameters()]
    (share,) = measure_shares(made, batches)
    assert (share.objective, len(share.ratios)) == ("freekd", 2)
    assert 0 < share.ratio < 100
    assert not objective.is_preparing()
    assert not any(torch.equal(*pair) for pair in zip(masks, objective.prompts.parameters(), strict=True))
    assert all(torch.equal(value, network[name]) for name, value in made.network.state_dict().items())


def test_batches_without_labels_and_objectives_without_weight_are_left_out(tiny: dict) -> None:
    made = ready("nnUNetTrainerKD", tiny, "objectives.logits.weight=0", "objectives.cwd.weight=3")
    made.unlabelled = frozenset({"b"})
    first, second = ({**random_batch(made, seed), "keys": keys} for seed, keys in ((0, ["a", "a"]), (1, ["b", "b"])))
    (share,) = measure_shares(made, [first, second])
    assert (share.objective, len(share.ratios), share.has_equal_weight) == ("cwd", 1, True)
    assert measure_shares(made, [first]) == [share]
    with pytest.raises(DataError, match=r"measured \(1\), none has samples with labels"):
        measure_shares(made, [second])


def test_no_weight_is_recommended_where_there_is_none() -> None:
    none, small = GradientShare("dcd", 1.0, (0.0,), (0.0,)), GradientShare("cwd", 2.0, (0.01, 0.02), (0.1, 0.1))
    told = list(_what_to_do([none, small]))
    assert told[0] == "dcd: has no gradient to the encoder on these batches, so no weight makes it count."
    assert told[1].endswith("--set objectives.cwd.weight=1.3e+02")
    console = Console(file=io.StringIO(), width=200)
    console.print(_table([none, small], 3))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "none" in shown
    assert "inf" not in shown
    assert "2 batches" in shown
    assert "1 batches without labels are left out" in shown


def test_objectives_of_a_mix_are_told_apart(tiny: dict) -> None:
    batch = random_batch(ready("nnUNetTrainerDCD", tiny))
    mix = ("objectives.logits.weight=1", "objectives.cwd.weight=0.05")
    shares = {share.objective: share for share in measure_shares(ready("nnUNetTrainerKD", tiny, *mix), [batch])}
    assert shares.keys() == {"logits", "cwd"}
    for name, trainer_name in (("logits", "nnUNetTrainerLogits"), ("cwd", "nnUNetTrainerCWD")):
        (alone,) = measure_shares(ready(trainer_name, tiny), [batch])
        assert shares[name].equal_weight == pytest.approx(alone.equal_weight, rel=1e-3)


def test_a_trainer_leaves_nothing_where_results_lie(tiny: dict) -> None:
    results = Path(os.environ["nnUNet_results"])
    before = sorted(results.rglob("*"))
    with in_temporary_results(lambda: trainer("nnUNetTrainerDCD", tiny)) as made:
        assert os.environ["nnUNet_results"] == str(results)
        assert not Path(made.output_folder).is_relative_to(results)
        made.prepare_distillation()
        assert made.supervision is not None
    assert sorted(results.rglob("*")) == before
    assert not Path(made.output_folder).exists()
