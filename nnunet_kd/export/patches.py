"""Network inputs to check and calibrate on: random patches, and patches of the user's images as nnU-Net cuts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image

from nnunet_kd.inference.cases import InputCase
from nnunet_kd.inference.predictor import CasePredictor
from nnunet_kd.nnunet.prediction import windows

if TYPE_CHECKING:  # it is optional
    from nnunet_kd_runtime.backends import Patch


def random_patches(channels: int, size: Sequence[int], count: int, batch: int = 1) -> Iterator[Patch]:
    """``count`` arrays ``(batch, channels, *size)`` of standard normal numbers, the same in every run."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.standard_normal((batch, channels, *size), dtype=np.float32)


def image_patches(predictor: CasePredictor, cases: Sequence[InputCase], count: int) -> Iterator[Patch]:
    """At most ``count`` sliding-window patches ``(1, channels, *size)``, spread evenly over the cases.

    Of each case those nearest the image's middle are taken, where the anatomy is.

    Raises:
        DataError: an image cannot be read.
    """
    chosen = [cases[index] for index in np.unique(np.linspace(0, len(cases) - 1, min(count, len(cases))).astype(int))]
    each = -(-count // len(chosen))
    left = count
    for case in chosen:
        data: torch.Tensor = predictor.preprocess(case)["data"]
        size = predictor.configuration_manager.patch_size
        padded, _ = pad_nd_image(data, size, "constant", {"value": 0}, True, None)
        slicers = windows(predictor, padded.shape[1:])
        order = sorted(range(len(slicers)), key=lambda index: abs(index - (len(slicers) - 1) / 2))
        for index in order[: min(each, left)]:
            yield padded[slicers[index]][None].numpy()
            left -= 1
