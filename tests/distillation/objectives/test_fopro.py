"""FoPro against NumPy's full spectrum and loops; its exploration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from nnunet_kd.distillation.objectives.fopro import FoPro, FourierPromptGenerator
from tests.distillation.objectives.steps import SHAPE, check_gradients, make, make_step, total


def scrambled(**settings: float) -> FoPro:
    """With prompts that are not the identity."""
    objective = make("fopro", **settings).float()
    assert isinstance(objective, FoPro)
    for parameter in objective.prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return objective


def slow_prompt(generator: FourierPromptGenerator, image: np.ndarray, latent: torch.Tensor) -> np.ndarray:
    """One channel through the full spectrum, gains interpolated by SciPy."""
    gains = generator.log_gains(latent[None]).detach().numpy()[0, 0]
    grid = np.linspace(0, 1, len(gains))
    interpolate = RegularGridInterpolator((grid,) * 3, gains)
    axes = [np.abs(np.fft.fftfreq(size)) * 2 for size in image.shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    prompted = np.fft.ifftn(np.fft.fftn(image) * np.exp(interpolate(places)))
    assert np.abs(prompted.imag).max() < 1e-6
    return prompted.real


def test_prompted_image_equals_a_slow_form_and_keeps_phases() -> None:
    generator = scrambled().prompts.module
    step = make_step()
    latents = torch.randn(2, 64)
    found = generator(step.image, latents).detach().numpy()
    for image in range(2):
        expected = slow_prompt(generator, step.image[image, 0].numpy().astype(float), latents[image])
        np.testing.assert_allclose(found[image, 0], expected, atol=2e-6)
        ratio = np.fft.fftn(found[image, 0]) / np.fft.fftn(step.image[image, 0].numpy())
        assert np.abs(np.angle(ratio)).max() < 1e-3
        assert 0.5 - 1e-3 < np.abs(ratio).min() < np.abs(ratio).max() < 2 + 1e-3


def test_agreement_equals_loops() -> None:
    objective, step = scrambled(), make_step()
    latents = torch.randn(2, 64, generator=step.generator("fopro"))
    prompted = objective.prompts(step.image, latents).detach()
    terms = objective(step)
    for index, teacher in enumerate(step.teacher.features(prompted)):
        weight = objective.projections[index].weight.detach().double().numpy()
        lengths = []
        for image, *place in np.ndindex(2, *teacher.shape[2:]):
            at = (image, slice(None), *place)
            own, other = weight @ step.student_features[index][at].numpy(), teacher[at].double().numpy()
            lengths.append(((own / np.linalg.norm(own) - other / np.linalg.norm(other)) ** 2).sum())
        assert terms[f"stage{index}"].item() == pytest.approx(np.mean(lengths), rel=1e-5)


def test_gradients_and_that_none_reach_the_prompts() -> None:
    check_gradients(make("fopro").float(), make_step())
    objective = scrambled()
    total(objective, make_step()).backward()
    assert all(parameter.grad is not None for parameter in objective.projections.parameters())
    assert all(parameter.grad is None for parameter in objective.prompts.parameters())


def test_the_identity_prompt_gives_plain_distillation() -> None:
    objective, step = make("fopro").float(), make_step()
    plain = objective._agreement(step.student_features, step.teacher_features)
    assert total(objective, step).item() == pytest.approx(sum(plain.values()).item(), rel=1e-5)


def test_exploration_trains_the_prompts_alone_and_only_when_due() -> None:
    objective, step = make("fopro", explore_every=3).float(), make_step()
    leaves = [feature.clone().requires_grad_() for feature in step.student_features]
    step = replace(step, student_features=leaves)
    teacher = {name: value.clone() for name, value in step.teacher.network.state_dict().items()}
    before = {name: value.clone() for name, value in objective.named_parameters()}
    assert objective.explore(replace(step, iteration=1)) == {}
    log = objective.explore(replace(step, iteration=3))
    assert log.keys() == {"challenge", "reading", "statistics", "diversity"}
    changed = {name for name, value in objective.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("prompts.") for name in changed)
    assert all(leaf.grad is None for leaf in leaves)
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert not any(parameter.requires_grad for parameter in objective.prompts.parameters())
    assert all(torch.equal(value, teacher[name]) for name, value in step.teacher.network.state_dict().items())


def test_exploration_counts_the_iterations_in_which_the_objective_does() -> None:
    objective, step = make("fopro", explore_every=5, every=5).float(), make_step()
    explored = [iteration for iteration in range(0, 55, 5) if objective.explore(replace(step, iteration=iteration))]
    assert explored == [0, 25, 50]


def test_exploration_finds_what_challenges_the_student() -> None:
    step = make_step()
    found = {}
    for gamma, mu in ((1.0, 0.0), (0.0, 1.0)):
        objective = make("fopro", explore_every=1, gamma=gamma, mu=mu, learning_rate=0.01).float()
        logs = [objective.explore(step) for _ in range(60)]
        found[gamma] = logs[0], logs[-1]
    assert found[1.0][1]["challenge"] > found[1.0][0]["challenge"] + 0.01
    reading = [log["reading"] + log["statistics"] for log in found[0.0]]
    assert reading[1] < reading[0]
    assert found[1.0][0]["diversity"] == 0 or found[1.0][1]["diversity"] > found[1.0][0]["diversity"]


def test_exploration_goes_on_after_a_restart_as_if_nothing_had_happened() -> None:
    step = make_step()
    whole = make("fopro", explore_every=1).float()
    for iteration in range(6):
        expected = whole.explore(replace(step, iteration=iteration, seed=iteration))
    first = make("fopro", explore_every=1).float()
    for iteration in range(3):
        first.explore(replace(step, iteration=iteration, seed=iteration))
    second = make("fopro", explore_every=1).float()
    second.load_state_dict(first.state_dict())
    for iteration in range(3, 6):
        found = second.explore(replace(step, iteration=iteration, seed=iteration))
    assert {name: value.item() for name, value in found.items()} == {k: v.item() for k, v in expected.items()}


def test_two_dimensions() -> None:
    generator = FourierPromptGenerator(8, 2, 2, 4, 2.0)
    image = torch.randn(2, 2, *SHAPE[:2])
    torch.testing.assert_close(generator(image, torch.randn(2, 8)), image)
