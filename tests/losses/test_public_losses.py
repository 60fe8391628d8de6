"""The losses as others use them: plain modules, without nnU-Net, whose examples run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import nnunet_kd
from nnunet_kd import losses
from nnunet_kd.losses import (
    ChannelProjection,
    CWDLoss,
    DCDLoss,
    ExpectationGenerator,
    FGBVDLoss,
    FiGKDLoss,
    FitNetLoss,
    FreeKDLoss,
    IFVDLoss,
    LogitsLoss,
)

PUBLIC = [name for name in losses.__all__ if name.endswith("Loss")]
MODULES = [f"nnunet_kd.losses.{module.name}" for module in pkgutil.iter_modules(losses.__path__)]
ON_FEATURES = {
    "DCDLoss": lambda projection: DCDLoss(projection),
    "CWDLoss": lambda projection: CWDLoss(projection),
    "FitNetLoss": lambda projection: FitNetLoss(projection),
    "FreeKDLoss": lambda projection: FreeKDLoss(6, projection),
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_loss_is_a_module_with_an_example(name: str) -> None:
    kind = getattr(losses, name)
    assert issubclass(kind, nn.Module)
    assert getattr(nnunet_kd, name) is kind
    assert ">>>" in kind.__doc__


def test_importing_them_loads_no_nnunet() -> None:
    code = (
        "import sys, nnunet_kd.losses; "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('nnunetv2', 'pydantic', 'batchgenerators')))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ON_FEATURES)
@pytest.mark.parametrize("shape", [(9, 8), (7, 8, 6)])
def test_without_projection_agreement_is_zero(name: str, shape: tuple[int, ...]) -> None:
    loss = ON_FEATURES[name](None)
    features = torch.randn(2, 6, *shape)
    assert loss(features, features).item() == pytest.approx(0, abs=1e-10)
    assert loss(features + torch.randn_like(features), features).item() > 1e-3


@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_projection_is_learned_with_the_student(name: str) -> None:
    student, teacher = nn.Conv3d(1, 3, 3, padding=1), torch.randn(2, 6, 8, 8, 8)
    image = torch.randn(2, 1, 8, 8, 8)
    loss = ON_FEATURES[name](ChannelProjection(3, 6))
    optimizer = torch.optim.SGD([*student.parameters(), *loss.parameters()], lr=0.01)
    values = []
    before = loss.projection.weight.clone()
    for _ in range(5):
        optimizer.zero_grad()
        value = loss(student(image), teacher)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert not torch.equal(before, loss.projection.weight)
    with pytest.raises(ValueError, match=r"give projection=ChannelProjection\(3, 6\)"):
        ON_FEATURES[name](None)(student(image), teacher)
    with pytest.raises(ValueError, match="differ in batch or spatial size"):
        loss(student(image)[..., :4], teacher)
    with pytest.raises(ValueError, match="from 3 to 6 channels"):
        loss(student(image), teacher[:, :5])


@pytest.mark.parametrize(
    "loss", [LogitsLoss(), LogitsLoss(independent=True), FiGKDLoss(), FiGKDLoss("class"), CWDLoss()]
)
def test_ignored_voxels_do_not_count(loss: nn.Module) -> None:
    student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    valid = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(loss(student, teacher, valid), loss(student, teacher))
    valid[..., 4:] = False
    changed = student.where(valid, torch.randn(2, 4, 8, 8))
    torch.testing.assert_close(loss(student, teacher, valid), loss(changed, teacher, valid))


def test_ifvd_takes_labels_at_any_resolution() -> None:
    labels = torch.randint(0, 3, (2, 8, 8))
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    loss = IFVDLoss()
    torch.testing.assert_close(loss(student, teacher, labels), loss(student, teacher, labels, classes=7))
    torch.testing.assert_close(loss(student, teacher, labels), loss(student, teacher, labels[:, ::2, ::2]))


def test_fgbvd_draws_from_the_given_generator() -> None:
    loss = FGBVDLoss(ExpectationGenerator(5, 3, 2), ChannelProjection(3, 5))
    student, teacher = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 8, 8)
    first, again, other = (loss(student, teacher, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again != other
    alike = FGBVDLoss(ExpectationGenerator(5, 3, 2))
    assert alike(teacher, teacher).isfinite()


def test_freekd_tunes_its_prompts_alone() -> None:
    head = nn.Conv2d(6, 3, 1).requires_grad_(False)
    teacher, labels = torch.randn(2, 6, 8, 8), torch.randint(0, 3, (2, 8, 8))
    loss = FreeKDLoss(6, ChannelProjection(3, 6), learning_rate=0.05)
    before = {name: value.clone() for name, value in loss.named_parameters()}
    values = [
        loss.tune(teacher, head, lambda logits: nn.functional.cross_entropy(logits, labels))["task"].item()
        for _ in range(30)
    ]
    assert values[-1] < values[0]
    changed = {name for name, value in loss.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"prompts.module.weight"}


@pytest.mark.parametrize(
    ("loss", "channels"),
    [
        (DCDLoss(), (5, 5)),
        (FreeKDLoss(5), (5, 5)),
        (FiGKDLoss(), (5, 5)),
        (FiGKDLoss("class"), (5, 5)),
        (FGBVDLoss(ExpectationGenerator(5, 3, 2), ChannelProjection(3, 5)), (3, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_kept_from_a_call_in_inference_mode_serves_training(loss: nn.Module, channels: tuple[int, int]) -> None:
    """Matrices and filters are kept for later calls; those made in a user's own inference mode must not be its tensors."""
    shape = (11, 13)  # of no other test, so that nothing is kept yet
    student, teacher = (torch.randn(1, count, *shape) for count in channels)
    with torch.inference_mode():
        expected = (
            loss(student, teacher, torch.Generator().manual_seed(1)) if channels[0] == 3 else loss(student, teacher)
        )
    student.requires_grad_()
    found = loss(student, teacher, torch.Generator().manual_seed(1)) if channels[0] == 3 else loss(student, teacher)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()
