"""The trainer's checkpoints: stock nnU-Net goes on from them, trainings resume, a full disk costs nothing."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.utils import convert_conv3d_weight_memory_format

from nnunet_kd.distillation.settings_sources import SETTINGS_FILE
from nnunet_kd.errors import MissingRequirement
from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer, random_batch
from tests.training.tiny_trainer import CPU, close_epoch, ready, save, steps, trainer


def test_stock_trainer_continues_and_predicts_from_the_checkpoint(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    steps(made, 2)
    close_epoch(made)
    path = save(made)
    checkpoint = torch.load(path, weights_only=False)
    assert set(checkpoint["network_weights"]) == set(made.network.state_dict())
    assert len(checkpoint["optimizer_state"]["param_groups"]) == 1
    stock: nnUNetTrainer = make_trainer(
        "nnUNetTrainer", checkpoint["init_args"]["plans"], "3d_fullres", DATASET_JSON, CPU
    )
    with contextlib.redirect_stdout(io.StringIO()):
        stock.load_checkpoint(str(path))
    image = random_batch(made)["data"]
    made.network.eval()
    stock.network.eval()
    convert_conv3d_weight_memory_format(stock.network, torch.channels_last_3d)  # as ours, for the same rounding
    with torch.no_grad():
        assert torch.equal(made.network(image)[0], stock.network(image)[0])
    for ours, theirs in zip(made.network.parameters(), stock.network.parameters(), strict=True):
        momentum = made.optimizer.state[ours].get("momentum_buffer")
        assert momentum is None or torch.equal(stock.optimizer.state[theirs]["momentum_buffer"], momentum)


@pytest.mark.parametrize("options", [(), ("ema=0.9",), ("objectives.dcd.projection=fixed",)])
def test_resumed_training_goes_on_as_if_nothing_had_happened(tiny: dict, options: tuple[str, ...]) -> None:
    whole = ready("nnUNetTrainerDCD", tiny, *options)
    steps(whole, 3)
    close_epoch(whole)
    whole.on_validation_epoch_start()
    path = save(whole)
    if whole.average is not None:
        whole.average.swap()
    whole.network.train()
    whole.go_to_iteration(0)  # of the next epoch
    expected = steps(whole, 3, first_seed=10)

    resumed = trainer("nnUNetTrainerDCD", tiny, "seed=2", *options)
    with contextlib.redirect_stdout(io.StringIO()):
        resumed.load_checkpoint(str(path))
        resumed.prepare_distillation()
    resumed.network.train()
    for group in resumed.optimizer.param_groups:
        group["lr"] = whole.optimizer.param_groups[0]["lr"]
    assert steps(resumed, 3, first_seed=10) == expected
    assert resumed.history.epochs == whole.history.epochs
    for ours, theirs in zip(
        resumed.supervision.distillation.parameters(), whole.supervision.distillation.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_ema_is_what_is_saved_and_deployed(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, "ema=0.5")
    name = next(iter(made.network.state_dict()))
    trajectory = [made.network.state_dict()[name].clone()]
    for index in range(2):
        steps(made, 1, index)
        trajectory.append(made.network.state_dict()[name].clone())
    first, second = 1 / 10, 2 / 11  # the warm-up's decays
    expected = second * (first * trajectory[0] + (1 - first) * trajectory[1]) + (1 - second) * trajectory[2]
    made.on_validation_epoch_start()
    checkpoint = torch.load(save(made), weights_only=False)
    torch.testing.assert_close(checkpoint["network_weights"][name], expected)
    torch.testing.assert_close(checkpoint[ENTRY]["training_weights"][name], trajectory[-1])
    made.average.swap()
    assert torch.equal(made.network.state_dict()[name], trajectory[-1])


def test_old_checkpoints_without_our_entry_resume(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    steps(made, 1)
    close_epoch(made)
    path = save(made)
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint[ENTRY]
    torch.save(checkpoint, path)
    resumed = trainer("nnUNetTrainerDCD", tiny)
    with contextlib.redirect_stdout(io.StringIO()):
        resumed.load_checkpoint(str(path))
        resumed.prepare_distillation()
    steps(resumed, 1)
    assert resumed.history.epochs == []


def test_validation_takes_the_reduction_from_the_checkpoint(tiny: dict) -> None:
    made = ready("nnUNetTrainerDCD", tiny, "reduction=2")
    path = save(made, "checkpoint_final.pth")
    validating = trainer("nnUNetTrainerDCD", tiny)  # as --val does: without the training's --set
    with contextlib.redirect_stdout(io.StringIO()):
        validating.load_checkpoint(str(path))
    assert validating.configuration_manager.network_arch_init_kwargs["features_per_stage"] == [4, 8, 16]
    assert validating.supervision is None


def test_a_full_disk_keeps_the_old_checkpoint(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready("nnUNetTrainerDCD", tiny)
    path = save(made)
    before = path.read_bytes()
    real = torch.save

    def fail(value: Any, file: Any) -> None:
        if not isinstance(file, io.BytesIO):
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        real(value, file)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(MissingRequirement, match=r"No space left.*still there, undamaged"):
        save(made)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))


def test_continuing_uses_the_saved_settings(tiny: dict) -> None:
    made = trainer("nnUNetTrainerDCD", tiny, "epochs=7", "objectives.dcd.weight=0.5")
    text = json.dumps(made.settings.as_dict())
    Path(made.output_folder, SETTINGS_FILE).write_text(text)
    again = trainer("nnUNetTrainerDCD", tiny, continue_training=True)
    assert (again.num_epochs, again.settings) == (7, made.settings)
    assert trainer("nnUNetTrainerDCD", tiny).num_epochs == 1000
