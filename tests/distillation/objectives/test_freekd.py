"""FreeKD against PyWavelets and loops; its tuning of prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import pywt
import torch
from scipy.special import expit

from nnunet_kd.distillation.objectives.freekd import FreeKD
from nnunet_kd.losses.freekd import FrequencyPrompts, bands_by_level, from_levels, overlap
from tests.distillation.objectives.steps import (
    check_gradients,
    identical_networks,
    make,
    make_step,
    set_identity,
    total,
)


def tuned(**settings: int) -> FreeKD:
    objective = make("freekd", prompt_iterations=0, **settings)
    assert isinstance(objective, FreeKD)
    for parameter in objective.prompts.parameters():
        torch.nn.init.normal_(parameter)
    return objective


@pytest.mark.parametrize("levels", [1, 3])
def test_equals_pywavelets_and_loops(levels: int) -> None:
    """What each prompt lets through, kept apart, by level; nothing of the approximation."""
    step, objective = make_step(), tuned(prompts=3, levels=levels)
    terms = objective(step)
    for index, (teacher, student) in enumerate(zip(step.teacher_features, step.student_features, strict=True)):
        phi = objective.projections[index].weight.detach().double().numpy()
        projected = np.einsum("ts,bs...->bt...", phi, student.numpy())
        theirs, ours = (
            pywt.wavedecn(values, "haar", "zero", levels, axes=(2, 3, 4)) for values in (teacher.numpy(), projected)
        )
        prompts = objective.prompts.module[index].weight.detach().numpy()
        assert prompts.shape == (levels + 1, 3, teacher.shape[1])
        expected = 0.0
        for place in range(1, levels + 1):
            orientations = sorted(theirs[place])
            values = []
            for image, *at in np.ndindex(2, *theirs[place][orientations[0]].shape[2:]):
                voxel = (image, slice(None), *at)
                seen = np.sum([theirs[place][name][voxel] for name in orientations], axis=0)
                for prompt in prompts[place]:
                    mask = expit(prompt @ seen)
                    values += [
                        np.abs(mask * theirs[place][name][voxel] - mask * ours[place][name][voxel])
                        for name in orientations
                    ]
            expected += np.mean(values)
        assert terms[f"stage{index}"].item() == pytest.approx(expected, rel=1e-9)


def test_what_the_decoder_sees_equals_pywavelets() -> None:
    prompts = FrequencyPrompts(3, prompts=2, levels=2).double()
    torch.nn.init.normal_(prompts.weight)
    features = torch.randn(2, 3, 6, 7, 5, dtype=torch.float64)
    seen, shared = prompts.masked(bands_by_level(features, 2), (6, 7, 5))
    coefficients = pywt.wavedecn(features.numpy(), "haar", "zero", 2, axes=(2, 3, 4))
    coefficients[0] = {"": coefficients[0]}
    overlaps = 0.0
    for place, bands in enumerate(coefficients):
        total = sum(bands.values())
        masks = expit(np.einsum("pc,bc...->bp...", prompts.weight[place].detach().numpy(), total))
        overlaps += overlap(torch.from_numpy(masks)).item()
        for name in bands:
            bands[name] = bands[name] * masks.sum(1)[:, None]
    coefficients[0] = coefficients[0][""]
    expected = pywt.waverecn(coefficients, "haar", "zero", axes=(2, 3, 4))[:, :, :6, :7, :5]
    np.testing.assert_allclose(seen.detach().numpy(), expected, atol=1e-12)
    assert shared.item() == pytest.approx(overlaps)


def test_gradients() -> None:
    check_gradients(tuned(), make_step())


def test_zero_where_the_two_agree() -> None:
    networks, step = identical_networks()
    objective = make("freekd", networks, prompt_iterations=0)
    set_identity(objective)
    assert total(objective, step).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(6, 7, 5), (4, 4), (1, 3, 2)])
def test_bands_and_back(shape: tuple[int, ...]) -> None:
    features = torch.randn(2, 3, *shape)
    for levels in (1, 3):
        torch.testing.assert_close(from_levels(bands_by_level(features, levels), shape), features)


def test_overlap_equals_a_loop() -> None:
    masks = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64)
    dice = []
    for image in range(2):
        for one, other in ((0, 1), (0, 2), (1, 2)):
            p, q = masks[image, one].numpy(), masks[image, other].numpy()
            dice.append(2 * (p * q).sum() / ((p**2).sum() + (q**2).sum()))
    assert overlap(masks).item() == pytest.approx(np.mean(dice))
    assert overlap(masks[:, :1]).item() == 0
    assert overlap(masks[:, :1].expand(-1, 2, -1, -1, -1)).item() == pytest.approx(1)


def test_prompts_are_tuned_first_and_then_stay() -> None:
    step = make_step()
    objective = make("freekd", prompt_iterations=40, learning_rate=0.05).float()
    logs = []
    while objective(step) == {}:
        logs.append(objective.explore(step))
    assert len(logs) == 40
    loss = [(log["task"] + log["overlap"]).item() for log in logs]
    assert loss[-1] < loss[0] - 0.01
    fixed = [parameter.clone() for parameter in objective.prompts.parameters()]
    assert objective.explore(step) == {}
    total(objective, step).backward()
    assert all(torch.equal(a, b) for a, b in zip(fixed, objective.prompts.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in objective.prompts.parameters())
    assert all(parameter.grad is not None for parameter in objective.projections.parameters())


def test_tuning_goes_on_after_a_restart_as_if_nothing_had_happened() -> None:
    step = make_step()
    whole, first, second = (make("freekd", prompt_iterations=6).float() for _ in range(3))
    for _ in range(6):
        whole.explore(step)
    for _ in range(3):
        first.explore(step)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.explore(replace(step, iteration=9))
    assert all(torch.equal(a, b) for a, b in zip(whole.prompts.parameters(), second.prompts.parameters(), strict=True))
    assert total(whole, step).item() == total(second, step).item()
