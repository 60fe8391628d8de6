"""Losses and gradients that are not finite, and memory that is full: nothing learned is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_kd.errors import TrainingStopped
from nnunet_kd.losses.self_trained import SelfTrained
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.training.history import LossHistory
from nnunet_kd.training.skipped_steps import SkippedSteps, nan_unless_finite
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import random_batch
from tests.training.tiny_trainer import close_epoch, ready, save, steps, trainer

EVERY = "objectives.dcd.every=1"


def replace_loss(made: DistillationTrainer, name: str, value: float = float("nan")) -> Any:
    """From now on the objective's loss is ``value``; returns its own way of computing."""
    objective = made.supervision.distillation.objectives[name]
    real = objective.forward
    objective.forward = lambda step: {key: term * 0 + value for key, term in real(step).items()}
    return real


def state(made: DistillationTrainer) -> dict[str, torch.Tensor]:
    momentum = {
        f"momentum of {place}": value["momentum_buffer"].clone()
        for place, value in enumerate(made.optimizer.state.values())
    }
    learned = {key: value.clone() for key, value in made.supervision.distillation.named_parameters()}
    return {**{key: value.clone() for key, value in made.network.state_dict().items()}, **momentum, **learned}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(tiny: dict, value: float) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY, "ema=0.5")
    steps(made, 2)
    before = state(made)
    average = {key: tensor.clone() for key, tensor in made.average.other_weights().items()}
    real = replace_loss(made, "dcd", value)
    steps(made, 3)
    assert before.keys() == state(made).keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(made).items())
    assert all(torch.equal(tensor, average[key]) for key, tensor in made.average.other_weights().items())
    made.supervision.distillation.objectives["dcd"].forward = real
    steps(made, 1)
    assert not any(torch.equal(tensor, before[key]) for key, tensor in state(made).items() if "momentum" in key)
    assert all(tensor.isfinite().all() for tensor in state(made).values())
    assert made.skipped_steps.consecutive == 0


def test_a_finite_loss_is_passed_on_bit_for_bit() -> None:
    value = torch.tensor(0.1, requires_grad=True)
    (gradient,) = torch.autograd.grad(nan_unless_finite(value * 3), value)
    assert (nan_unless_finite(value * 3) == value * 3).item()
    assert gradient == 3


def test_an_infinite_gradient_of_a_finite_loss_is_skipped_too(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY)
    steps(made, 1)
    before = state(made)
    next(made.network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    steps(made, 1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(made).items())
    assert made.skipped_steps.close_epoch() == (1, "the gradient alone (1)")
    assert {name: float(counted) for name, (_, counted) in made.history._sums.items()}["segmentation"] == 1


def test_the_epoch_counts_them_and_averages_the_others(tiny: dict, capsys: pytest.CaptureFixture[str]) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY)
    good = made.train_step(random_batch(made))
    replace_loss(made, "dcd")
    bad = made.train_step({**random_batch(made), "keys": ["a", "b"]})
    capsys.readouterr()
    made.on_train_epoch_end([good, bad])
    told = capsys.readouterr().out
    assert "1 of 2 steps skipped, loss or gradient not finite: dcd/stage0, dcd/stage1, dcd/stage2 (1)" in told
    assert made.logger.get_value("train_losses", -1) == good["loss"]
    assert made.history.epochs[0]["dcd"] > 0


def test_a_run_of_them_stops_with_the_cases_and_the_culprit(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY, "max_skipped_steps=3")
    steps(made, 2)
    before = state(made)
    replace_loss(made, "dcd")
    steps(made, 2)
    with pytest.raises(TrainingStopped, match=r"3 steps in a row.*dcd/stage0.*in a batch of case_7, case_9") as error:
        made.train_step({**random_batch(made), "keys": ["case_7", "case_9"]})
    path = Path(made.output_folder) / "checkpoint_latest.pth"
    assert str(path) in str(error.value)
    saved = read_checkpoint(path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in saved["network_weights"].items())
    assert made.current_epoch == saved["current_epoch"] == 0  # the epoch begins anew
    resumed = trainer("nnUNetTrainerDCD", tiny, continue_training=True)
    resumed.load_checkpoint(str(path))
    resumed.prepare_distillation()
    resumed.on_train_epoch_start()
    steps(resumed, 1)


def test_the_segmentation_loss_is_named_too(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY, "max_skipped_steps=1")
    batch = {**random_batch(made), "keys": ["broken"]}
    batch["data"][0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingStopped, match=r"segmentation.*in a batch of broken\. There was nothing to save yet"):
        made.train_step(batch)


def test_with_ema_the_average_is_what_is_saved_at_a_stop(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY, "max_skipped_steps=1", "ema=0.5")
    steps(made, 2)
    name = next(iter(made.network.state_dict()))
    average, own = made.average.other_weights()[name].clone(), made.network.state_dict()[name].clone()
    replace_loss(made, "dcd")
    with pytest.raises(TrainingStopped):
        steps(made, 1)
    saved = read_checkpoint(Path(made.output_folder) / "checkpoint_latest.pth")
    assert torch.equal(saved["network_weights"][name], average)
    assert torch.equal(saved["nnunet_kd"]["training_weights"][name], own)
    assert torch.equal(made.network.state_dict()[name], own)


def test_a_full_memory_says_what_to_lower_and_saves(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY)
    steps(made, 2)
    close_epoch(made)
    earlier = save(made, "checkpoint_best.pth").read_bytes()
    steps(made, 1)
    before = state(made)

    def allocate(step: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    made.supervision.distillation.objectives["dcd"].forward = allocate
    with pytest.raises(TrainingStopped) as error:
        steps(made, 1)
    text = str(error.value)
    for part in (
        "Tried to allocate 2.00 GiB",
        "epoch 1",
        "objectives (now dcd)",
        "objectives.dcd.levels (now",
        "batch size",
    ):
        assert part in text
    saved = read_checkpoint(Path(made.output_folder) / "checkpoint_latest.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in saved["network_weights"].items())
    assert (Path(made.output_folder) / "checkpoint_best.pth").read_bytes() == earlier
    assert (made.supervision._capture.features, made.supervision._last) == ([], None)


def test_memory_that_is_full_in_validation(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready("nnUNetTrainerDCD", tiny, EVERY)
    steps(made, 1)
    monkeypatch.setattr(
        made.network, "forward", lambda image: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("full"))
    )
    with pytest.raises(TrainingStopped, match="The weights reached are in"):
        made.validation_step(random_batch(made))
    made.local_rank = 1  # as nnU-Net numbers the second of several processes, which saves nothing
    with pytest.raises(TrainingStopped, match="This process saves no weights; checkpoints from before are untouched"):
        made.validation_step(random_batch(made))


class _Scaler:
    """What of the gradient scaler matters here: it halves its scale when it skips a step."""

    scale = 8.0

    def get_scale(self) -> float:
        return self.scale


def test_with_a_gradient_scaler_its_skips_are_counted() -> None:
    weight = nn.Parameter(torch.ones(()))
    scaler = _Scaler()
    skipped = SkippedSteps(torch.optim.SGD([weight], lr=1.0), scaler)  # type: ignore[arg-type]
    for scale, expected in ((8.0, False), (4.0, True), (2.0, True), (4.0, False)):
        skipped.start_step()
        scaler.scale = scale
        assert skipped.finish_step({"segmentation": torch.ones(())}, []) is expected
    assert skipped.close_epoch() == (2, "the gradient alone (2)")
    assert skipped.close_epoch() == (0, "")


def test_pytorchs_scaler_and_ours_skip_the_same_steps() -> None:
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    skipped = SkippedSteps(optimizer, scaler)
    for factor, expected in ((1.0, False), (float("inf"), True), (1.0, False)):
        before = weight.item()
        skipped.start_step()
        optimizer.zero_grad()
        loss = nan_unless_finite(weight * factor)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert skipped.finish_step({"segmentation": loss.detach()}, []) is expected
        assert (weight.item() == before) is expected


def test_what_explores_by_itself_skips_too() -> None:
    explorer = SelfTrained(nn.Linear(2, 1), 0.1)
    before = [parameter.clone() for parameter in explorer.parameters()]
    explorer.minimise(lambda: explorer(torch.full((1, 2), float("nan"))).sum())
    assert all(torch.equal(a, b) for a, b in zip(before, explorer.parameters(), strict=True))
    explorer.minimise(lambda: explorer(torch.ones(1, 2)).sum())
    assert not any(torch.equal(a, b) for a, b in zip(before, explorer.parameters(), strict=True))


def test_history_leaves_them_out() -> None:
    history = LossHistory()
    for value in (1.0, float("nan"), 3.0):
        history.add({"segmentation": torch.tensor(value)})
    history.add({"dcd": torch.tensor(float("inf"))})
    assert history.close_epoch(0) == {"segmentation": 2.0}
