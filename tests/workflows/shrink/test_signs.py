"""Signs of images of another kind than the model was trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from nnunet_kd.inference.image_folders import ImageCase
from nnunet_kd.workflows.shrink.images import Images, SeenImage
from nnunet_kd.workflows.shrink.signs import strange_geometry, strange_intensities, strange_texture
from tests.workflows.shrink.tiny_shrink import tiny_plans


def test_geometry_of_another_kind() -> None:
    plans = tiny_plans()
    assert strange_geometry((16, 20, 30), (1, 1, 1), plans) == {}
    assert strange_geometry((16, 16, 16), (1, 1, 3.5), plans) == {
        "voxel size": "1 x 1 x 3.5 mm, and the model's training data 1 x 1 x 1 mm",
        "extent": "16 x 16 x 56 mm, and the model's training data 16 x 16 x 16 mm",
    }
    plans["transpose_forward"] = [2, 0, 1]
    plans["original_median_spacing_after_transp"] = [4.0, 1.0, 1.0]
    assert strange_geometry((16, 16, 16), (1, 1, 4), plans) == {}
    assert strange_geometry((16, 16, 64), (1, 1, 4), plans).keys() == {"extent"}
    plans["original_median_shape_after_transp"] = [1, 16, 16]
    assert strange_geometry((16, 16, 1), (1, 1, 999), plans) == {}  # pictures


def test_intensities_of_another_kind() -> None:
    random = np.random.default_rng(0)
    usual = random.normal(100, 20, (1, 8, 8, 8))
    assert strange_intensities(usual, tiny_plans(), ["MRI"]) == {}
    found = strange_intensities(usual * 0 + np.linspace(1000, 2000, 512).reshape(8, 8, 8), tiny_plans(), ["MRI"])
    assert found == {"intensities": "1005 to 1995, and in the foreground of the model's training data 50 to 150"}
    assert strange_intensities(np.zeros((1, 4, 4, 4)), tiny_plans(), ["MRI"]) == {}
    two = np.concatenate([usual, usual + 5000])
    assert strange_intensities(two, tiny_plans(channels=2), ["T1", "T2"]).keys() == {"intensities of T2"}


def test_the_texture_of_noise() -> None:
    noise = np.random.default_rng(0).normal(100, 20, (1, 12, 12, 12))
    assert strange_texture(noise, ["MRI"])["texture"].endswith("as in noise")
    smooth = gaussian_filter(noise, 0.7, axes=(1, 2, 3))
    assert strange_texture(smooth, ["MRI"]) == {}
    assert strange_texture(np.ones_like(noise), ["MRI"]) == {}
    assert strange_texture(noise[:, :4, :4, :4], ["MRI"]) == {}  # too few voxels to tell
    assert strange_texture(noise[:, :1].repeat(8, 1), ["MRI"]) == {}  # one slice after the other
    assert strange_texture(np.concatenate([smooth, noise]), ["T1", "T2"]).keys() == {"texture of T2"}
    assert strange_texture(noise.reshape(1, 1, 48, 36), ["MRI"]).keys() == {"texture"}


def test_many_images_are_judged_by_those_that_were_looked_into() -> None:
    case = ImageCase("a", ())
    noise = SeenImage((9, 9, 9), (1, 1, 1), None, True, {"texture": "as in noise"})
    unread = SeenImage((9, 9, 9), (1, 1, 1), None, False)
    many = {f"looked_{n}": noise for n in range(40)} | {f"unread_{n}": unread for n in range(1000)}
    images = Images(dict.fromkeys(many, case), {}, many)
    assert images.foreign
    assert images.warnings()[0].startswith("texture of 40 of 40 images: as in noise (looked_0")
    thick = {name: replace(one, signs={"extent": "far"}) for name, one in list(many.items())[:100]}
    found = Images(dict.fromkeys(many, case), {}, {name: replace(one, signs={}) for name, one in many.items()} | thick)
    assert found.warnings()[0].startswith("extent of 100 of 1040 images")
