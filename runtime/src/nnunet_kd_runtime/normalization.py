"""nnU-Net's normalisation schemes, in float32 as nnU-Net computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import DataError

Image = NDArray[np.float32]
Intensities = Mapping[str, Any]
SMALLEST_SPREAD = 1e-8


def normalize(scheme: str, image: Image, inside: NDArray[np.bool_] | None, intensities: Intensities) -> Image:
    """Normalise one channel, possibly in place.

    Args:
        scheme: one of :data:`SCHEMES`.
        image: the channel, cropped.
        inside: voxels to take mean and deviation of and to normalise; ``None``: all. Only z-scores use it.
        intensities: the training set's foreground statistics, for CT.

    Raises:
        DataError: values outside what the scheme takes.
    """
    return SCHEMES[scheme](image, inside, intensities)


def _z_score(image: Image, inside: NDArray[np.bool_] | None, _: Intensities) -> Image:
    if inside is None:
        mean, spread = image.mean(), image.std()
        image -= mean
        image /= max(spread, SMALLEST_SPREAD)
        return image
    values = image[inside]
    if not values.size:  # an image of zeros alone
        return image
    mean, spread = values.mean(), values.std()
    image[inside] = (values - mean) / max(spread, SMALLEST_SPREAD)
    return image


def _ct(image: Image, _: NDArray[np.bool_] | None, intensities: Intensities) -> Image:
    np.clip(image, intensities["percentile_00_5"], intensities["percentile_99_5"], out=image)
    image -= intensities["mean"]
    image /= max(intensities["std"], SMALLEST_SPREAD)
    return image


def _none(image: Image, _: NDArray[np.bool_] | None, __: Intensities) -> Image:
    return image


def _to_unit_range(image: Image, _: NDArray[np.bool_] | None, __: Intensities) -> Image:
    image -= image.min()
    image /= np.clip(image.max(), a_min=SMALLEST_SPREAD, a_max=None)
    return image


def _rgb(image: Image, _: NDArray[np.bool_] | None, __: Intensities) -> Image:
    if image.min() < 0 or image.max() > 255:
        raise DataError(
            f"the model normalises this channel as a colour from 0 to 255, but it holds values from {image.min():g} to "
            f"{image.max():g}."
        )
    image /= 255.0
    return image


SCHEMES: dict[str, Callable[[Image, NDArray[np.bool_] | None, Intensities], Image]] = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": _none,
    "RescaleTo01Normalization": _to_unit_range,
    "RGBTo01Normalization": _rgb,
}
"""By nnU-Net's class name."""
