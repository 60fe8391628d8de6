"""Ridge regressions against least squares on the augmented system."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_kd.distillation.starts.regression import CentredRegression, InterceptRegression


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("rows", [200, 7], ids=["more rows than unknowns", "fewer"])
def test_centred_regression(rows: int) -> None:
    inputs, residuals = _random(rows, 12), _random(rows, 3)
    weights, ridge = [0.5, 2.0], 1e-2
    regression = CentredRegression(12, 3, rows, ridge)
    pieces = [(inputs[: rows // 2], residuals[: rows // 2]), (inputs[rows // 2 :], residuals[rows // 2 :])]
    for piece, weight in zip(pieces, weights, strict=True):
        regression.add(*piece, weight)
    factors = np.repeat(np.sqrt(weights), [rows // 2, rows - rows // 2])[:, None]
    design, wanted = factors * inputs.numpy(), factors * residuals.numpy()
    penalty = ridge * np.trace(design.T @ design) / 12
    augmented = np.concatenate([design, np.sqrt(penalty) * np.eye(12)])
    expected = np.linalg.lstsq(augmented, np.concatenate([wanted, np.zeros((12, 3))]), rcond=None)[0]
    np.testing.assert_allclose(regression.solve().numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
def test_intercept_regression(intercept: bool) -> None:
    inputs, residuals = _random(50, 4) + 3, _random(50, 2, 3)
    ridge = 1e-2
    regression = InterceptRegression((4, 2, 3), ridge, intercept)
    regression.add(inputs[:20], residuals[:20])
    regression.add(inputs[20:], residuals[20:])
    differences, shift = regression.solve()
    design, zeros, ones = inputs.numpy(), np.zeros((50, 4)), np.ones((50, 1))
    centred = design - design.mean(0)
    penalty = np.sqrt(ridge * np.trace(centred.T @ centred) / 4)
    apart = np.block([[design, zeros, ones], [zeros, design, ones]])
    pulled = np.block([penalty * np.eye(8), np.zeros((8, 1))])
    columns = 9 if intercept else 8
    augmented = np.concatenate([apart, pulled])[:, :columns]
    for output in range(3):
        wanted = np.concatenate([residuals[:, 0, output], residuals[:, 1, output], np.zeros(8)])
        expected = np.linalg.lstsq(augmented, wanted, rcond=None)[0]
        np.testing.assert_allclose(differences[:, :, output].T.flatten(), expected[:8], rtol=1e-8)
        np.testing.assert_allclose(float(shift[output]), expected[8] if intercept else 0.0, rtol=1e-8)


def test_inputs_that_do_not_vary_keep_the_prior() -> None:
    regression = CentredRegression(3, 2, 10, 1e-3)
    regression.add(torch.zeros(10, 3, dtype=torch.float64), _random(10, 2), 1.0)
    assert torch.equal(regression.solve(), torch.zeros(3, 2, dtype=torch.float64))
    shared = InterceptRegression((3, 1, 2), 1e-3, intercept=True)
    shared.add(torch.ones(10, 3, dtype=torch.float64), torch.ones(10, 1, 2, dtype=torch.float64))
    differences, shift = shared.solve()
    assert torch.isfinite(differences).all()
    torch.testing.assert_close(differences.sum(0).flatten() + shift, torch.ones(2, dtype=torch.float64))


def test_inputs_that_are_constant_but_for_rounding_keep_the_given_weights() -> None:
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        constants, targets = (torch.randn(size, generator=random, dtype=torch.float64) for size in (5, 2))
        regression = InterceptRegression((5, 1, 2), 1e-3, intercept=True)
        for rows in (37, 101):
            regression.add(constants.expand(rows, 5), targets.expand(rows, 1, 2))
        differences, shift = regression.solve()
        assert float(differences.abs().max()) < 1e-8
        torch.testing.assert_close(shift, targets, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rows", [200, 20], ids=["more rows than unknowns", "fewer"])
def test_a_ridge_that_is_lost_in_rounding_is_raised(rows: int) -> None:
    inputs = _random(rows, 1) * _random(1, 60)  # of rank 1
    regression = CentredRegression(60, 1, rows, 1e-18)
    regression.add(inputs, inputs @ torch.ones(60, 1, dtype=torch.float64), 1.0)
    solved = regression.solve()
    torch.testing.assert_close(inputs @ solved, inputs.sum(1, keepdim=True), rtol=1e-6, atol=1e-6)
