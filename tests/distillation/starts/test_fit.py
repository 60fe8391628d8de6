"""What a start keeps of its teacher, whatever the widths."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_kd.distillation.starts import observation
from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.heads import fit_probabilities
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.pairing import pair
from tests.distillation.starts.networks import PLAIN, RESIDUAL, every_channel_twice, images, largest_difference, network


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_a_teacher_with_every_channel_twice_is_inherited_without_loss(kind: type[nn.Module], dimensions: int) -> None:
    small, student = (network(kind, (2, 3, 4, 4), dimensions) for _ in range(2))
    teacher = every_channel_twice(small, network(kind, (4, 6, 8, 8), dimensions))
    assert largest_difference(small, teacher, dimensions) < 1e-12
    # the deepest layers have fewer samples than unknowns: of their dropped inputs only this prior knows
    settings = InheritanceSettings(ridge=1e-10, prior="interpolated")
    inherit(teacher, student, images(3, dimensions), settings)
    assert largest_difference(teacher, student, dimensions) < 1e-6


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((4, 6, 8, 8), (3, 3, 4, 4)), ((6, 6, 8, 8), (2, 3, 4, 4))],
    ids=["only the teacher has a projection", "only the student has one"],
)
def test_residual_skips_that_do_not_match(teacher: tuple, student: tuple) -> None:
    large, small, sliced = network(RESIDUAL, teacher), network(RESIDUAL, student), network(RESIDUAL, student)
    fits = {fit.name: fit.unexplained for fit in inherit(large, small, images(), InheritanceSettings())}
    slices = {fit.name: fit.unexplained for fit in inherit(large, sliced, images(), InheritanceSettings(refit=False))}
    block = "encoder.stages.1.blocks.0"
    assert f"{block}.conv2" not in fits, "it stands for what the skip leaves, not for the teacher's own"
    assert fits[block] < 0.8 * slices[block]


def test_the_last_convolution_stands_for_what_a_foreign_skip_leaves() -> None:
    """The student's identity skip carries other channels than the teacher's projection: the sum still is the teacher's."""
    large, small = network(RESIDUAL, (4, 6, 8, 8), blocks=1), network(RESIDUAL, (3, 3, 4, 4), blocks=1)
    found = pair(large, small)
    mended = [step for step in found.steps if getattr(step, "remainder_of", None)]
    assert [step.target for step in mended] == ["encoder.stages.1.blocks.0.conv2"]
    fits = {fit.name: fit for fit in inherit(large, small, images(6), InheritanceSettings(ridge=1e-6))}
    assert fits["encoder.stages.1.blocks.0"].unexplained < 0.9


@pytest.mark.parametrize("widths", [(3, 4, 5, 5), (4, 6, 8, 7), (1, 1, 1, 1)], ids=["r=1.5", "by hand", "one channel"])
@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_any_widths(kind: type[nn.Module], widths: tuple) -> None:
    teacher, student = network(kind), network(kind, widths)
    fits = inherit(teacher, student, images(), InheritanceSettings())
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert [len(fit.kept) for fit in fits if fit.name == "encoder.stages.0.0.convs.0"] in ([], [widths[0]])


def test_heads_say_what_the_teacher_says_rather_than_how_loudly() -> None:
    def divergence(student: nn.Module, regions: bool) -> float:
        with torch.no_grad():
            said, own = (torch.cat([net(image)[0] for image in images(4)]) for net in (teacher, student))
        if regions:
            return float(functional.binary_cross_entropy_with_logits(own, said.sigmoid()))
        return float(functional.cross_entropy(own, said.softmax(1)))

    teacher = network()
    for regions in (False, True):
        students = {}
        for heads in ("logits", "probabilities"):
            torch.manual_seed(3)
            student = network(features=(2, 3, 4, 4))
            inherit(teacher, student, images(4), InheritanceSettings(heads=heads), regions=regions)
            students[heads] = divergence(student, regions)
        assert students["probabilities"] < students["logits"] - 1e-4


@pytest.mark.parametrize("regions", [False, True])
def test_heads_reach_the_minimum_of_their_objective(regions: bool) -> None:
    """``mean_n KL(p_n || softmax(X_n W + b)) + ridge v / 2 ||W - W0||^2``: its gradient, by hand, is zero."""
    generator = torch.Generator().manual_seed(0)
    inputs, logits = (torch.randn(300, width, generator=generator, dtype=torch.float64) for width in (4, 3))
    prior = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    begun = (torch.zeros_like(prior), torch.zeros(3, dtype=torch.float64))
    ridge = 0.1
    weight, bias = fit_probabilities(inputs, logits, begun, prior, ridge, regions)
    told = (lambda values: values.sigmoid()) if regions else (lambda values: values.softmax(1))
    error = (told(inputs @ weight + bias) - told(logits)) / len(inputs)
    variance = float(((inputs - inputs.mean(0)) ** 2).mean())
    pull = ridge * variance * (weight - prior)
    assert float((inputs.T @ error + pull).abs().max()) < 1e-6
    assert float(error.sum(0).abs().max()) < 1e-6
    assert float(pull.abs().max()) > 1e-3, "the ridge is at work"


def test_the_same_start_bit_for_bit_and_no_trace_in_random_states() -> None:
    teacher = network(dtype=torch.float32, eps=1e-5)
    torch.manual_seed(7)
    student = network(features=(2, 3, 4, 4), dtype=torch.float32, eps=1e-5)
    again = copy.deepcopy(student)
    state = torch.get_rng_state()
    for one in (student, again):
        inherit(teacher, one, images(dtype=torch.float32), InheritanceSettings(), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    assert student.training


def test_samples_are_bounded_and_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "LEAST_SAMPLES", 300)
    monkeypatch.setattr(observation, "SAMPLES_PER_UNKNOWN", 4)
    teacher = every_channel_twice(network(features=(2, 3, 4, 4)), network())
    student = network(features=(2, 3, 4, 4))
    fits = inherit(teacher, student, images(), InheritanceSettings(ridge=1e-10, prior="interpolated"))
    assert max(fit.samples for fit in fits) <= max(300, 4 * 8 * 27) + 3
    assert largest_difference(teacher, student) < 1e-4
