"""Soft labels as an objective: nnU-Net's own deeply supervised loss where they are hard, and voxels that are to be ignored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch.nn import functional

from nnunet_kd.distillation.objectives.base import NetworkPair, StepOutputs
from nnunet_kd.distillation.targets import Targets
from nnunet_kd.losses.soft import SoftLabelLoss
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.workflows.bench.pair import DATASET_JSON, random_batch, write_preprocessed
from tests.conftest import make_plans
from tests.distillation.objectives.steps import HEADS, make, make_step, total
from tests.training.tiny_trainer import ready

SIZES, WEIGHTS = (8, 4, 2, 1), (4 / 7, 2 / 7, 1 / 7, 0.0)


def networks(regions: bool, batch_dice: bool = False) -> NetworkPair:
    return NetworkPair((4, 6), (2, 3), 3, 1, HEADS, has_regions=regions, batch_dice=batch_dice)


def outputs() -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    drawn = (torch.randn(2, HEADS, *[size] * 3, generator=random, dtype=torch.float64) for size in SIZES)
    return tuple(one.requires_grad_() for one in drawn)


def step_with(logits: tuple[torch.Tensor, ...], maps: torch.Tensor, valid: torch.Tensor | None = None) -> StepOutputs:
    targets = Targets(torch.zeros(2, 8, 8, 8, dtype=torch.int64), valid, HEADS)
    return make_step(
        student_logits=logits[0], all_logits=logits, scale_weights=WEIGHTS, soft_labels=maps, targets=targets
    )


def enlarged(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Blocks of one value, of which the mean is what the nearest voxel has."""
    for axis in range(2, values.ndim):
        values = values.repeat_interleave(factor, axis)
    return values


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_hard_maps_give_nnunets_deeply_supervised_loss(regions: bool, batch_dice: bool) -> None:
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    random = torch.Generator().manual_seed(2)
    if regions:
        loss: Any = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
        targets = [(torch.rand(2, HEADS, 2, 2, 2, generator=random) < 0.5).double()]
    else:
        loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
        targets = [torch.randint(0, HEADS, (2, 1, 2, 2, 2), generator=random)]
    targets = [enlarged(targets[0], factor) for factor in (4, 2, 1)] + [targets[0][..., :1, :1, :1]]
    whole = DeepSupervisionWrapper(loss, WEIGHTS)
    one_hot = targets[0] if regions else functional.one_hot(targets[0][:, 0], HEADS).movedim(-1, 1).double()[:, 1:]
    logits = outputs()
    ours = total(make("soft", networks(regions, batch_dice)), step_with(logits, one_hot))
    wanted = whole(list(logits), targets)
    # nnU-Net adds its Dice up in float32
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)
    for own, theirs in zip(*(torch.autograd.grad(value, logits[:3]) for value in (ours, wanted)), strict=True):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-9)


def test_hard_regions_weigh_as_nnunets_loss_with_an_ignore_label() -> None:
    """Which adds up what it averages over channels elsewhere, also where no voxel is ignored."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
    loss = DC_and_BCE_loss({}, dice, use_ignore_label=True, dice_class=MemoryEfficientSoftDiceLoss)
    random = torch.Generator().manual_seed(2)
    coarse = (torch.rand(2, HEADS, 2, 2, 2, generator=random) < 0.5).double()
    targets = [enlarged(coarse, factor) for factor in (4, 2, 1)] + [coarse[..., :1, :1, :1]]
    with_channel = [torch.cat([one, torch.zeros_like(one[:, :1])], dim=1) for one in targets]
    logits = outputs()
    valid = torch.ones(2, 1, 8, 8, 8, dtype=torch.bool)
    wanted = DeepSupervisionWrapper(loss, WEIGHTS)(list(logits), with_channel)
    for where_ignored in (True, False):
        ours = total(make("soft", networks(True), where_ignored=where_ignored), step_with(logits, targets[0], valid))
        assert ours.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_a_step_on_exact_maps_is_nnunets_own(folders: Path, deep_supervision: bool) -> None:
    """Whatever ``alpha`` is: value and gradient of the whole loss, from the real trainer."""
    plans = make_plans(features=(8, 8, 8, 8))
    write_preprocessed(plans, DATASET_JSON, "3d_fullres")
    made = ready("nnUNetTrainerSoft", plans, "objectives.soft.alpha=0.3", deep_supervision=deep_supervision)
    batch = random_batch(made)
    blocks = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(4))
    targets = [enlarged(blocks, factor).float() for factor in (4, 2, 1)]
    batch["target"] = targets if deep_supervision else targets[0]
    batch[KEY] = functional.one_hot(targets[0][:, 0].long(), 3).movedim(-1, 1)[:, 1:].float()
    wanted = made.loss.segmentation(made.network(batch["data"]), batch["target"])
    parameters = dict(made.network.named_parameters())
    gradients = torch.autograd.grad(wanted, list(parameters.values()), allow_unused=True)
    norm = torch.stack([one.norm() for one in gradients if one is not None]).norm()
    assert norm < 12, "nnU-Net would clip it"
    assert float(made.train_step(batch)["loss"]) == pytest.approx(wanted.item(), rel=1e-5)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_count_on_no_scale(regions: bool, temperature: float) -> None:
    random = torch.Generator().manual_seed(3)
    valid = torch.rand(2, 1, 8, 8, 8, generator=random) < 0.3
    valid[0, :, :4, :4, :4] = False  # of some coarse voxels nothing is left
    maps, others = (torch.rand(2, HEADS - int(not regions), 8, 8, 8, generator=random).double() / 2 for _ in range(2))
    logits, found = outputs(), []
    for where_ignored in (False, True):
        objective = make("soft", networks(regions), where_ignored=where_ignored, temperature=temperature)
        for said in (maps, torch.where(valid, maps, others)):
            value = total(objective, step_with(logits, said, valid))
            found.append((value.item(), torch.autograd.grad(value, logits[:3])))
    (value, gradients), (same, same_gradients), (everywhere, _), (another, _) = found
    assert value == pytest.approx(same, rel=1e-12)
    for own, theirs in zip(gradients, same_gradients, strict=True):
        assert own.isfinite().all()
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-15)
    assert abs(everywhere - another) > 1e-4

    q = maps if regions else torch.cat([1 - maps.sum(1, keepdim=True), maps], 1)
    loss, expected = SoftLabelLoss(regions, temperature=temperature), 0.0
    for size, weight, scale in zip(SIZES[:3], WEIGHTS, logits, strict=False):
        edge = 8 // size
        mean, counts = torch.full_like(scale, 0.5), torch.zeros(2, 1, size, size, size, dtype=torch.bool)
        for sample, *place in np.ndindex(2, size, size, size):
            box = tuple(slice(edge * at, edge * (at + 1)) for at in place)
            inside = valid[(sample, 0, *box)]
            if inside.any():
                counts[(sample, 0, *place)] = True
                mean.data[(sample, slice(None), *place)] = q[(sample, slice(None), *box)][:, inside].mean(1)
        assert size > 4 or not counts.all()
        expected += weight * loss(scale, mean.detach(), counts).item()
    assert value == pytest.approx(expected, rel=1e-9)


def test_nothing_counts_where_all_is_to_be_ignored() -> None:
    logits = outputs()
    step = step_with(logits, torch.rand(2, HEADS - 1, 8, 8, 8).double() / 2)
    nothing = torch.zeros(2, 1, 8, 8, 8, dtype=torch.bool)
    step = replace(step, targets=Targets(step.targets.classes, nothing, HEADS))
    total(make("soft", networks(False), where_ignored=False, temperature=2.0), step).backward()
    assert all(not one.grad.any() for one in logits[:3])
