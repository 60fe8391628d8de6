"""Mixed precision as on a GPU, on the CPU: float16 autocast around nnU-Net's step, and PyTorch's own gradient scaler."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module

from nnunet_kd.distillation.frozen_teacher import FrozenTeacher
from nnunet_kd.training.trainer import DistillationTrainer
from tests.distillation.objectives.test_every_objective import TRAINERS, WITHOUT_OBJECTIVES
from tests.training.tiny_trainer import steps, trainer

EVERY = {**TRAINERS, **WITHOUT_OBJECTIVES}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nnU-Net asks for autocast on GPUs alone, it gets the CPU's."""
    monkeypatch.setattr(nnunet_module, "dummy_context", lambda: torch.autocast("cpu", torch.float16))
    monkeypatch.setattr(FrozenTeacher, "_autocast_precision", lambda self: torch.float16)


def ready(plans: dict, name: str, scale: float) -> DistillationTrainer:
    kind, *assignments = EVERY[name]
    made = trainer(kind, plans, "seed=1", *assignments)
    made.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with contextlib.redirect_stdout(io.StringIO()):
        made.prepare_distillation()
        made.on_train_epoch_start()
    return made


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("name", EVERY)
def test_every_trainer_steps(plans: dict, name: str) -> None:
    made = ready(plans, name, 2.0**10)
    seen: set[torch.dtype] = set()
    made.network.encoder.register_forward_hook(lambda module, inputs, output: seen.update(one.dtype for one in output))
    before = {key: value.clone() for key, value in made.network.state_dict().items()}
    learning = list(made.supervision.distillation.parameters()) if made.supervision is not None else []
    learned = [value.clone() for value in learning]
    losses = steps(made, 3)
    assert torch.float16 in seen
    assert all(torch.isfinite(torch.tensor(losses)))
    assert (made.skipped_steps.taken, made.skipped_steps.consecutive) == (3, 0)
    after = made.network.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in after.items() if key.startswith("encoder"))
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in after.values())
    assert not any(torch.equal(*pair) for pair in zip(learned, learning, strict=True))
    means = made.history.close_epoch(0)
    assert all(means[objective] > 0 for objective, chosen in made.settings.objectives if chosen is not None)


@pytest.mark.usefixtures("half")
def test_a_step_that_overflows_is_skipped_and_the_next_are_not(plans: dict) -> None:
    made = ready(plans, "dcd", 2.0**40)
    before = {key: value.clone() for key, value in made.network.state_dict().items()}
    learned = [value.clone() for value in made.supervision.distillation.parameters()]
    steps(made, 1)
    assert made.skipped_steps.consecutive == 1
    assert made.grad_scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[key]) for key, value in made.network.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(learned, made.supervision.distillation.parameters(), strict=True))
    made.grad_scaler.update(2.0**10)
    steps(made, 1)
    assert (made.skipped_steps.consecutive, made.skipped_steps.taken) == (0, 1)
    assert not any(torch.equal(*pair) for pair in zip(learned, made.supervision.distillation.parameters(), strict=True))
    assert made.skipped_steps.close_epoch() == (1, "the gradient alone (1)")
