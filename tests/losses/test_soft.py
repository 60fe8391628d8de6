"""Cross-entropy and Dice for soft targets against plain loops, and against nnU-Net's own loss where targets are hard."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch.nn import functional

from nnunet_kd.losses.soft import SoftLabelLoss, at_scale, with_background

SHAPES = [(2, 3, 4, 5), (2, 3, 2, 3, 4)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_loops(
    logits: np.ndarray, q: np.ndarray, independent: bool, batch_dice: bool, t: float, valid: np.ndarray
) -> float:
    """The docstring's equations, voxel by voxel."""
    samples, classes = logits.shape[:2]
    entropy, count = 0.0, 0
    p = np.empty_like(logits)
    for b in range(samples):
        for voxel in itertools.product(*map(range, logits.shape[2:])):
            z, wanted = logits[(b, slice(None), *voxel)], q[(b, slice(None), *voxel)]
            if independent:
                p[(b, slice(None), *voxel)] = 1 / (1 + np.exp(-z))
                soft = 1 / (1 + np.exp(-z / t))
                inside, outside = wanted ** (1 / t), (1 - wanted) ** (1 / t)
                target = inside / (inside + outside)
                own = -(target * np.log(soft) + (1 - target) * np.log(1 - soft)).sum()
            else:
                p[(b, slice(None), *voxel)] = np.exp(z) / np.exp(z).sum()
                soft = np.exp(z / t) / np.exp(z / t).sum()
                target = wanted ** (1 / t) / (wanted ** (1 / t)).sum()
                own = -(target * np.log(soft)).sum()
            if valid[(b, 0, *voxel)]:
                entropy, count = entropy + own, count + 1
    entropy /= count
    if independent and valid.all():
        entropy /= classes
    mask = np.broadcast_to(valid, q.shape)
    ratios = []
    for group in [range(samples)] if batch_dice else [[b] for b in range(samples)]:
        for k in range(0 if independent else 1, classes):
            common = sum(np.minimum(p[b, k], q[b, k])[mask[b, k]].sum() for b in group)
            total = sum((p[b, k] + q[b, k])[mask[b, k]].sum() for b in group)
            ratios.append((2 * common + 1e-5) / (total + 1e-5))
    return t**2 * entropy - float(np.mean(ratios))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient(
    shape: tuple[int, ...], independent: bool, batch_dice: bool, temperature: float, masked: bool
) -> None:
    logits = torch.randn(shape, generator=generator(), dtype=torch.float64, requires_grad=True)
    q = torch.rand(shape, generator=generator(1), dtype=torch.float64)
    q = q if independent else q / q.sum(1, keepdim=True)
    valid = torch.rand((shape[0], 1, *shape[2:]), generator=generator(2)) < 0.7 if masked else None
    loss = SoftLabelLoss(independent, batch_dice, temperature=temperature)
    value = loss(logits, q, valid)
    plain = np.ones((shape[0], 1, *shape[2:]), bool) if valid is None else valid.numpy()

    def expected(z: np.ndarray) -> float:
        found = by_loops(z, q.numpy(), independent, batch_dice, temperature, plain)
        return found

    assert value.item() == pytest.approx(expected(logits.detach().numpy()), abs=1e-12)
    (gradient,) = torch.autograd.grad(value, logits)
    step = 1e-5
    for place in [(0, 0, *[0] * (len(shape) - 2)), (1, 2, *[1] * (len(shape) - 2))]:
        up, down = (logits.detach().numpy().copy() for _ in range(2))
        up[place] += step
        down[place] -= step
        assert gradient[place].item() == pytest.approx((expected(up) - expected(down)) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_no_gradient_where_the_student_agrees(independent: bool, batch_dice: bool, temperature: float) -> None:
    logits = torch.randn(2, 4, 5, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    q = logits.detach().sigmoid() if independent else logits.detach().softmax(1)
    SoftLabelLoss(independent, batch_dice, temperature=temperature)(logits, q).backward()
    assert logits.grad.abs().max() < 1e-15


def test_the_usual_soft_dice_would_have_one() -> None:
    logits = torch.randn(2, 4, 5, 6, generator=generator(), requires_grad=True)
    q = logits.detach().softmax(1)
    dice = MemoryEfficientSoftDiceLoss(lambda z: z.softmax(1), batch_dice=False, do_bg=False, smooth=1e-5, ddp=False)
    dice(logits, q).backward()
    assert logits.grad.abs().max() > 1e-3


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_hard_targets_give_nnunets_own_loss(batch_dice: bool, ignored: bool) -> None:
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    own = DC_and_CE_loss(options, {}, ignore_label=3 if ignored else None, dice_class=MemoryEfficientSoftDiceLoss)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator(), requires_grad=True)
    labels = torch.randint(0, 4 if ignored else 3, (2, 1, 4, 5, 6), generator=generator(1))
    valid = labels != 3 if ignored else None
    hard = functional.one_hot(labels[:, 0] % 3, 3).movedim(-1, 1).float()
    ours = SoftLabelLoss(batch_dice=batch_dice)(logits, hard, valid)
    wanted = own(logits, labels)
    assert ours.item() == pytest.approx(wanted.item(), abs=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, wanted)]
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize("ignored", [False, True])
def test_hard_regions_give_nnunets_own_loss(ignored: bool) -> None:
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
    own = DC_and_BCE_loss({}, options, use_ignore_label=ignored, dice_class=MemoryEfficientSoftDiceLoss)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator(), requires_grad=True)
    regions = (torch.rand(2, 3, 4, 5, 6, generator=generator(1)) < 0.4).float()
    ignore = (torch.rand(2, 1, 4, 5, 6, generator=generator(2)) < 0.2).float()
    target = torch.cat([regions, ignore], 1) if ignored else regions
    ours = SoftLabelLoss(independent=True)(logits, regions, ignore == 0 if ignored else None)
    wanted = own(logits, target)
    assert ours.item() == pytest.approx(wanted.item(), abs=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, wanted)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_nearest_maps_give_the_whole_deeply_supervised_loss() -> None:
    weights = [4 / 7, 2 / 7, 1 / 7, 0.0]
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    whole = DeepSupervisionWrapper(DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss), weights)
    sizes = [(8, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1)]
    labels = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=generator(1))
    targets = [functional.interpolate(labels.float(), size, mode="nearest-exact").long() for size in sizes]
    outputs = [torch.randn(2, 3, *size, generator=generator(place)) for place, size in enumerate(sizes)]
    loss = SoftLabelLoss()
    hard = [functional.one_hot(target[:, 0], 3).movedim(-1, 1).float() for target in targets]
    ours = sum(weight * loss(*pair) for weight, *pair in zip(weights, outputs, hard, strict=True) if weight)
    assert float(ours) == pytest.approx(float(whole(outputs, targets)), abs=1e-6)


def test_coarse_scales_ask_for_the_mean() -> None:
    thin = torch.zeros(1, 1, 4, 4, 4)
    thin[..., 1, 1, 1] = 1  # a voxel that the nearest neighbour of no coarse voxel may be
    coarse = at_scale(thin, (2, 2, 2))
    assert coarse[0, 0, 0, 0, 0] == pytest.approx(1 / 8)
    assert coarse.sum() == pytest.approx(1 / 8)
    assert at_scale(thin, (4, 4, 4)) is thin
    assert at_scale(torch.rand(1, 2, 6, 6), (3, 2)).shape == (1, 2, 3, 2)


def test_the_background_has_the_rest() -> None:
    foreground = torch.tensor([[0.25, 0.0], [0.5, 0.0]]).view(1, 2, 2, 1)
    assert with_background(foreground)[0, :, :, 0].tolist() == [[0.25, 1.0], [0.25, 0.0], [0.5, 0.0]]
    above = with_background(torch.tensor([0.5, 0.502]).view(1, 2, 1, 1))
    assert above.sum() == pytest.approx(1)
    assert above[0, 0, 0, 0] == 0


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="temperature"):
        SoftLabelLoss(temperature=0)
    with pytest.raises(ValueError, match="differ in shape"):
        SoftLabelLoss()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4))
