"""Known shapes, independent implementations, and the conventions for empty masks."""

from __future__ import annotations

import medpy.metric.binary
import numpy as np
import pytest
import surface_distance
from scipy import ndimage

from nnunet_kd.evaluation.metrics import (
    MetricOptions,
    hausdorff_distance_95,
    match_lesions,
    measure,
    surface_dice,
)

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 1.1), (0.5, 2.5, 0.5)]


def ball(radius, spacing, extent=26.0, centre=(0.0, 0.0, 0.0)):
    """A ball in mm, on a grid that is ``extent`` mm wide on every axis."""
    grids = np.meshgrid(*(np.arange(-extent / 2, extent / 2, step) for step in spacing), indexing="ij")
    return sum((grid - at) ** 2 for grid, at in zip(grids, centre, strict=True)) <= radius**2


def blobs(seed, shape=(14, 22, 18)):
    """Two unlike random masks with rough surfaces, several components, and voxels at the image's edge."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=shape), 1.7)
    other = field + 0.6 * ndimage.gaussian_filter(random.normal(size=shape), 1.2)
    return field > np.quantile(field, 0.8), other > np.quantile(other, 0.75)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [1, 3])
def test_a_shifted_cube_is_off_by_its_shift_in_mm(axis, shift):
    spacing = (2.5, 1.0, 0.6)
    reference = np.zeros((20, 20, 20), dtype=bool)
    reference[4:14, 4:14, 4:14] = True
    prediction = np.roll(reference, shift, axis)
    # a fifth of the surface is the face that moved, more than the 5% which HD95 forgives
    result = measure(prediction, reference, spacing)
    assert result["dice"] == pytest.approx((10 - shift) / 10)
    assert result["hd95"] == pytest.approx(shift * spacing[axis], rel=1e-6)
    assert result["volume_difference"] == 0
    just_enough = MetricOptions(nsd_tolerance=shift * spacing[axis] + 1e-4)
    assert measure(prediction, reference, spacing, just_enough)["nsd"] == pytest.approx(1)
    assert measure(prediction, reference, spacing, MetricOptions(nsd_tolerance=0.5))["nsd"] < 0.95


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (1.0, 0.4, 0.5)])
def test_concentric_balls_have_the_textbook_values(spacing):
    small, large = ball(6.0, spacing), ball(9.0, spacing)
    result = measure(small, large, spacing, MetricOptions(nsd_tolerance=1.5))
    assert result["dice"] == pytest.approx(2 * 6**3 / (6**3 + 9**3), abs=0.01)
    assert result["reference_volume"] == pytest.approx(4 / 3 * np.pi * 9**3 / 1000, rel=0.01)
    assert result["volume_difference"] == pytest.approx(4 / 3 * np.pi * (6**3 - 9**3) / 1000, rel=0.02)
    assert result["hd95"] == pytest.approx(3.0, abs=max(spacing))  # a surface is known to about a voxel
    assert result["nsd"] == 0  # 3 mm apart everywhere, give or take a voxel
    assert measure(small, large, spacing, MetricOptions(nsd_tolerance=4.0))["nsd"] == pytest.approx(1)


def test_spacing_matters():
    reference = np.zeros((12, 12, 12), dtype=bool)
    reference[3:8, 3:8, 3:8] = True
    prediction = np.roll(reference, 2, axis=0)
    fine, coarse = measure(prediction, reference, (1, 1, 1)), measure(prediction, reference, (4, 1, 1))
    assert coarse["hd95"] == pytest.approx(4 * fine["hd95"])
    assert coarse["dice"] == fine["dice"]
    assert coarse["reference_volume"] == pytest.approx(4 * fine["reference_volume"])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_dice_and_nsd_agree_with_surface_distance(spacing, seed):
    prediction, reference = blobs(seed)
    distances = surface_distance.compute_surface_distances(reference, prediction, spacing)
    for tolerance in (0.4, 1.0, 2.7):
        result = measure(prediction, reference, spacing, MetricOptions(nsd_tolerance=tolerance))
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
        assert result["nsd"] == pytest.approx(expected, rel=1e-5)
    assert result["dice"] == pytest.approx(surface_distance.compute_dice_coefficient(reference, prediction))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_hd95_and_dice_agree_with_medpy(spacing, seed):
    prediction, reference = blobs(seed)
    # MedPy's own hd95 pools both directions; MONAI takes the larger of the two directed percentiles
    directed = vars(medpy.metric.binary)["__surface_distances"]
    there, back = directed(prediction, reference, spacing), directed(reference, prediction, spacing)
    result = measure(prediction, reference, spacing)
    assert result["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert result["dice"] == pytest.approx(medpy.metric.binary.dc(prediction, reference))


@pytest.mark.parametrize("seed", range(3))
def test_2d_agrees_with_both_and_a_slice_is_measured_in_its_plane(seed):
    prediction, reference = (mask[7] for mask in blobs(seed))
    spacing = (0.8, 1.3)
    result = measure(prediction, reference, spacing)
    distances = surface_distance.compute_surface_distances(reference, prediction, spacing)
    assert result["nsd"] == pytest.approx(surface_distance.compute_surface_dice_at_tolerance(distances, 1.0), rel=1e-5)
    directed = vars(medpy.metric.binary)["__surface_distances"]
    there, back = directed(prediction, reference, spacing), directed(reference, prediction, spacing)
    assert result["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert measure(prediction[None], reference[None], (999.0, *spacing)) == result


@pytest.mark.parametrize("seed", range(3))
def test_cropping_changes_nothing(seed):
    prediction, reference = blobs(seed)
    spacing = (3.0, 0.7, 1.1)
    padded = measure(np.pad(prediction, 5), np.pad(reference, 5), spacing)
    direct = measure(prediction, reference, spacing)
    assert padded["hd95"] == direct["hd95"] == pytest.approx(hausdorff_distance_95(prediction, reference, spacing))
    assert direct["nsd"] == pytest.approx(surface_dice(prediction, reference, spacing, 1.0))


def test_identical_masks_are_perfect():
    _, mask = blobs(0)
    result = measure(mask, mask, (1, 2, 3))
    assert (result["dice"], result["hd95"], result["nsd"], result["lesion_f1"]) == (1, 0, 1, 1)


class TestEmptyMasks:
    nothing = np.zeros((6, 6, 6), dtype=bool)
    something = np.pad(np.ones((2, 2, 2), dtype=bool), 2)

    def test_both_empty_is_not_defined_by_default(self):
        result = measure(self.nothing, self.nothing, (1, 1, 1))
        assert all(np.isnan(result[name]) for name in ("dice", "hd95", "nsd", "lesion_f1"))
        assert result["volume_difference"] == 0

    def test_both_empty_can_count_as_perfect(self):
        result = measure(self.nothing, self.nothing, (1, 1, 1), MetricOptions(empty="perfect"))
        assert (result["dice"], result["hd95"], result["nsd"], result["lesion_f1"]) == (1, 0, 1, 1)

    @pytest.mark.parametrize("swap", [False, True])
    def test_one_empty_leaves_hd95_undefined(self, swap):
        pair = (self.nothing, self.something)[:: -1 if swap else 1]
        result = measure(*pair, (1, 1, 1), MetricOptions(empty="perfect"))
        assert (result["dice"], result["nsd"], result["lesion_f1"]) == (0, 0, 0)
        assert np.isnan(result["hd95"])
        assert result["volume_difference"] == pytest.approx(0.008 if swap else -0.008)

    def test_one_empty_can_cost_a_penalty(self):
        options = MetricOptions(hd95_penalty=374.0)
        assert measure(self.nothing, self.something, (1, 1, 1), options)["hd95"] == 374
        assert np.isnan(measure(self.nothing, self.nothing, (1, 1, 1), options)["hd95"])


class TestLesions:
    def test_hit_missed_and_false_lesions(self):
        reference, prediction = np.zeros((2, 20, 20, 20), dtype=bool)
        reference[1:4, 1:4, 1:4] = True  # found, by two predicted components
        prediction[1, 1, 1] = prediction[3, 3, 3] = True
        reference[8:10, 8:10, 8:10] = True  # missed
        reference[12:14, 12:14, 12:14] = prediction[13:16, 13:16, 13:16] = True  # found
        prediction[18, 18, 1] = prediction[1, 18, 18] = True  # false
        match = match_lesions(prediction, reference)
        assert (match.reference, match.prediction, match.missed, match.false) == (3, 5, 1, 2)
        assert match.f1 == pytest.approx(2 / (2 + (2 + 1) / 2))

    def test_voxels_that_touch_at_a_corner_are_one_lesion(self):
        mask = np.zeros((4, 4, 4), dtype=bool)
        mask[0, 0, 0] = mask[1, 1, 1] = True
        assert match_lesions(mask, mask).reference == 1
        assert match_lesions(mask[0] | mask[1], mask[0] | mask[1]).reference == 1


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        measure(np.ones((2, 2, 2), dtype=bool), np.ones((2, 2, 3), dtype=bool), (1, 1, 1))
