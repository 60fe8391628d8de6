"""Which channels are kept, against a slow, obvious search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_kd.distillation.starts.channels import RELATIVE_FLOOR, Covariance, choose_channels, interpolation, selection


def _greedy(values: np.ndarray, count: int) -> list[int]:
    """One after the other, the channel of which the chosen ones explain least."""
    centred = values - values.mean(0)
    chosen: list[int] = []
    for _ in range(count):
        left = []
        for channel in range(values.shape[1]):
            known = centred[:, chosen]
            fitted = known @ np.linalg.lstsq(known, centred[:, channel], rcond=None)[0] if chosen else 0.0
            left.append(-1.0 if channel in chosen else np.square(centred[:, channel] - fitted).sum())
        chosen.append(int(np.argmax(left)))
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_spanning_channels_are_the_greedy_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (
        random.standard_normal((60, 4)) @ random.standard_normal((4, 9)) + 0.3 * random.standard_normal((60, 9)) + 5
    )
    covariance = Covariance(9)
    for piece in np.array_split(values, 3):
        covariance.add(torch.from_numpy(piece))
    np.testing.assert_allclose(covariance.matrix().numpy(), np.cov(values.T, bias=True), atol=1e-12)
    for count in (1, 4, 8):
        assert choose_channels(covariance.matrix(), count, "spanning", 0).tolist() == _greedy(values, count)


def test_all_channels_stay_in_order() -> None:
    values = torch.randn(40, 6, dtype=torch.float64)
    covariance = Covariance(6)
    covariance.add(values)
    for choice in ("spanning", "random", "regular"):
        assert choose_channels(covariance.matrix(), 6, choice, 3).tolist() == list(range(6))


def test_channels_that_depend_on_others_fill_up_last() -> None:
    one = torch.randn(40, 1, dtype=torch.float64)
    values = torch.cat([one, 2 * one, torch.zeros(40, 1), torch.randn(40, 1, dtype=torch.float64)], 1)
    covariance = Covariance(4)
    covariance.add(values)
    assert choose_channels(covariance.matrix(), 2, "spanning", 0).tolist() == [1, 3]
    assert choose_channels(covariance.matrix(), 3, "spanning", 0).tolist() == [0, 1, 3]
    assert choose_channels(torch.zeros(4, 4, dtype=torch.float64), 2, "spanning", 0).tolist() == [0, 1]


def test_choices_that_do_not_look() -> None:
    covariance = torch.eye(8, dtype=torch.float64)
    assert choose_channels(covariance, 2, "regular", 0).tolist() == [0, 4]
    assert choose_channels(covariance, 5, "regular", 0).tolist() == [0, 1, 3, 4, 6]
    drawn = {tuple(choose_channels(covariance, 3, "random", seed).tolist()) for seed in range(10)}
    assert len(drawn) > 3
    assert all(list(one) == sorted(set(one)) for one in drawn)


def test_interpolation_is_least_squares_from_the_kept_channels() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((60, 7)) @ random.standard_normal((7, 7)) + 3
    covariance, kept = Covariance(7), torch.tensor([1, 2, 5])
    covariance.add(torch.from_numpy(values))
    matrix = interpolation(covariance.matrix(), kept).numpy()
    centred = (values - values.mean(0)) / np.sqrt(60)
    floor = RELATIVE_FLOOR * np.square(centred[:, kept]).sum() / 3
    augmented = np.concatenate([centred[:, kept], np.sqrt(floor) * np.eye(3)])
    expected = np.linalg.lstsq(augmented, np.concatenate([centred, np.zeros((3, 7))]), rcond=None)[0].T
    others = [0, 3, 4, 6]
    np.testing.assert_allclose(matrix[others], expected[others], rtol=1e-8)
    np.testing.assert_array_equal(matrix[kept], np.eye(3))
    np.testing.assert_array_equal(selection(7, kept).numpy(), np.eye(7)[:, kept])


def test_channels_that_depend_on_kept_ones_are_interpolated_exactly() -> None:
    kept = torch.randn(50, 2, dtype=torch.float64)
    covariance = Covariance(4)
    covariance.add(torch.stack([kept[:, 0], 2 * kept[:, 0] - 3 * kept[:, 1], kept[:, 1], torch.full((50,), 0.7)], 1))
    said = interpolation(covariance.matrix(), torch.tensor([0, 2]))
    expected = torch.tensor([[1, 0], [2, -3], [0, 1], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(said, expected, rtol=1e-6, atol=1e-6)


def test_constant_channels_have_no_variance_left_by_rounding() -> None:
    for seed in range(20):
        constants = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        covariance = Covariance(6)
        for rows in (37, 101):
            covariance.add(constants.expand(rows, 6))
        matrix = covariance.matrix()
        assert not matrix.any()
        assert interpolation(matrix, torch.tensor([0, 4])).isfinite().all()
