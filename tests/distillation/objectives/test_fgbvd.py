"""FGBVD against NumPy's full spectrum and SciPy's convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from scipy.special import rel_entr, softmax

from nnunet_kd.distillation.objectives.base import Objective
from nnunet_kd.distillation.objectives.fgbvd import FGBVD
from nnunet_kd.losses.fgbvd import BiasAndVariance, ExpectationGenerator, low_band
from tests.distillation.objectives.steps import HALF, SHAPE, check_gradients, make, make_step


def slow_low_pass(volume: np.ndarray, cutoff: float, order: int) -> np.ndarray:
    """On the full spectrum, with the gain of every frequency worked out one by one."""
    spectrum = np.fft.fftn(volume)
    for place in np.ndindex(volume.shape):
        radius = 0.0
        for index, size in zip(place, volume.shape, strict=True):
            cycles = index if index <= size / 2 else index - size
            radius += (2 * cycles / size) ** 2
        spectrum[place] *= 1 / (1 + (np.sqrt(radius) / cutoff) ** (2 * order))
    low = np.fft.ifftn(spectrum)
    assert np.abs(low.imag).max() < 1e-12
    return low.real


def slow_generator(generator: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    weights = {name: value.detach().numpy() for name, value in generator.named_parameters()}
    hidden = np.einsum("hc,c...->h...", weights["reduce.weight"][:, :, 0, 0, 0], x)
    hidden += weights["reduce.bias"][:, None, None, None]
    mixed = [
        correlate(channel, kernel[0], mode="constant") + bias
        for channel, kernel, bias in zip(hidden, weights["mix.weight"], weights["mix.bias"], strict=True)
    ]
    out = np.einsum("ch,h...->c...", weights["expand.weight"][:, :, 0, 0, 0], np.maximum(mixed, 0))
    return out + weights["expand.bias"][:, None, None, None]


def kl(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    p, q = softmax(teacher, axis=0), softmax(student, axis=0)
    return rel_entr(p, q).sum(0)


@pytest.mark.parametrize("divergence", ["mse", "kl"])
def test_equals_a_slow_form(divergence: str) -> None:
    step = make_step()
    objective = make("fgbvd", divergence=divergence, alpha=0.3, beta=2.0)
    assert isinstance(objective, FGBVD)
    random = step.generator("fgbvd")
    terms = objective(step)
    for index, shape in enumerate((SHAPE, HALF)):
        hidden = torch.rand((2, 1, *shape[:2], shape[2] // 2 + 1), generator=random).numpy() < 0.5
        biases, variances = [], []
        for image in range(2):
            phi = objective.projections[index].weight.detach().double().numpy()
            student = np.einsum("ts,s...->t...", phi, step.student_features[index][image].numpy())
            spectrum = np.where(hidden[image], 0, np.fft.rfftn(student, axes=(1, 2, 3)))
            expected = slow_generator(objective.generators[index], np.fft.irfftn(spectrum, shape, axes=(1, 2, 3)))
            teacher = step.teacher_features[index][image].numpy()
            low = np.stack([slow_low_pass(channel, 0.25, 4) for channel in teacher])
            measure = kl if divergence == "kl" else (lambda t, s: (t - s) ** 2)
            b, v = measure(low, expected), measure(teacher - low, student - expected)
            biases.append(0.3 * b + 0.7 * b * np.exp(-v))
            variances.append(2.0 * v)
        assert terms[f"stage{index}_bias"].item() == pytest.approx(np.mean(biases), rel=1e-6)
        assert terms[f"stage{index}_variance"].item() == pytest.approx(np.mean(variances), rel=1e-6)


@pytest.mark.parametrize("divergence", ["mse", "kl"])
def test_gradients(divergence: str) -> None:
    """By finite differences of the same loss with its weights ``exp(-v)`` held fast."""
    # with alpha = 1 there are none, and the loss itself is what is differentiated
    check_gradients(make("fgbvd", divergence=divergence, alpha=1.0), make_step())


def test_variance_is_never_rewarded() -> None:
    """Where the bias exceeds 2, the gradient of ``(1 - a) b exp(-v) + beta v`` would be down with ``v`` up."""
    loss = BiasAndVariance(alpha=0.5, beta=1.0)
    teacher, low = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 4.0)  # b = 16, since E = 0
    own = torch.full((1, 1, 1), -4.3, requires_grad=True)  # v = (own - E - T_high)^2 = 0.09, T_high = -4
    bias, variance = loss._block_sums(None, _Nothing(1, 1, 3), teacher, low, own, torch.zeros(1, 1, 1))
    assert bias.item() == pytest.approx(16 * (0.5 + 0.5 * np.exp(-0.09)), rel=1e-5)
    ((gradient,),) = (torch.autograd.grad(bias + variance, own)[0].flatten().tolist(),)
    assert gradient == pytest.approx(2 * -0.3, rel=1e-4)  # beta dv/d own alone: towards the teacher


class _Nothing(ExpectationGenerator):
    def expected(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = []
    for size in (1, 1 << 11, 1 << 30):  # one voxel, some voxels and a rest, everything
        monkeypatch.setattr("nnunet_kd.losses.fgbvd.block_bytes", lambda device, size=size: size)
        step, objective = make_step(), make("fgbvd")
        for feature in step.student_features:
            feature.requires_grad_()
        terms = objective(step)
        learned = [*step.student_features, *objective.parameters()]
        values.append([*terms.values(), *torch.autograd.grad(torch.stack([*terms.values()]).sum(), learned)])
    for small, some, whole in zip(*values, strict=True):
        torch.testing.assert_close(small, whole)
        torch.testing.assert_close(some, whole)


def test_a_constant_is_low() -> None:
    features = torch.randn(2, 3, 7, 6, 5, dtype=torch.float64)
    assert 0 < low_band(features, 0.25, 4).square().sum() < features.square().sum()
    constant = torch.full((1, 1, 6, 6, 6), 3.0, dtype=torch.float64)
    torch.testing.assert_close(low_band(constant, 0.25, 4), constant)


def test_learned_parts_and_the_same_random_numbers_after_resuming() -> None:
    objective: Objective = make("fgbvd")
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"projections", "generators"}
    step = make_step()
    assert [t.item() for t in objective(step).values()] == [t.item() for t in objective(step).values()]
    other = make_step(seed=0)
    object.__setattr__(other, "seed", 4)
    assert objective(other)["stage0_bias"].item() != objective(step)["stage0_bias"].item()
