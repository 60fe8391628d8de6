"""Segmenting arrays instead of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_kd_runtime.backends import BACKENDS, DEVICES
from nnunet_kd_runtime.description import read_model
from nnunet_kd_runtime.errors import DataError, SettingsError
from nnunet_kd_runtime.memory import Budget
from nnunet_kd_runtime.segmentation import Predictor

SMALLEST_STEP = 0.05
"""Of the patch; a smaller one would take thousands of patches."""


def open_predictor(
    model: str | Path,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    threads: int | None = None,
    mirroring: bool = True,
    step: float = 0.5,
    memory: float | None = None,
) -> Predictor:
    """Load an exported model once, for many images.

    Args:
        model: ``.onnx`` with its JSON beside it.
        backend: onnxruntime or openvino.
        device: cpu or cuda.
        threads: default: all cores.
        mirroring: average over the mirror axes of the training.
        step: distance of patches as a share of the patch.
        memory: gibibytes that may be used; default: what is available.

    Raises:
        SettingsError: a back end, device, number of threads, step or memory that there is not.
        ModelError, MissingRequirement: see there.
    """
    if backend not in BACKENDS:
        raise SettingsError(f"there is no back end {backend!r}, only {' and '.join(BACKENDS)}.")
    if device not in DEVICES:
        raise SettingsError(f"there is no device {device!r}, only {' and '.join(DEVICES)}.")
    if threads is not None and (not isinstance(threads, int | np.integer) or threads < 1):
        raise SettingsError(f"threads must be a whole number of at least 1, got {threads!r}.")
    if not _is_real(step) or not SMALLEST_STEP <= step <= 1:
        raise SettingsError(f"step must lie between {SMALLEST_STEP} and 1, got {step!r}.")
    budget = Budget(memory)
    opened = read_model(Path(model))
    return Predictor(opened, BACKENDS[backend](opened, device, threads), budget, mirroring, step)


def segment(
    model: str | Path | Predictor, image: ArrayLike, spacing: Sequence[float], previous: ArrayLike | None = None
) -> NDArray[Any]:
    """Labels of one image.

    Args:
        model: ``.onnx`` with its JSON beside it, or what :func:`open_predictor` gave.
        image: ``(channels, z, y, x)``, or ``(z, y, x)`` of one channel; a slice of a 2D model is ``(1, y, x)``.
        spacing: millimetres along z, y, x.
        previous: of a cascade: the previous stage's labels ``(z, y, x)``.

    Returns:
        ``(z, y, x)`` uint8, uint16 from 255 labels.

    Raises:
        DataError: the image, the spacing or ``previous`` does not fit the model, or holds no real numbers.
        ModelError, MissingRequirement: see :func:`open_predictor`.
    """
    predictor = model if isinstance(model, Predictor) else open_predictor(model)
    array = _real_numbers(image, "the image")
    if array.ndim == 3:
        array = array[None]
    stage = None if previous is None else _real_numbers(previous, "the previous stage's segmentation")
    sides = _real_numbers(spacing, "the spacing")
    if sides.ndim != 1:
        raise DataError(f"the spacing must be three numbers, got the shape {sides.shape}.")
    return predictor.segment(array, [float(side) for side in np.asarray(spacing)], stage).segmentation


def _real_numbers(given: Any, what: str) -> NDArray[np.float32]:
    """As float32, which a reader would give; beyond its range infinite, which preprocessing refuses."""
    try:
        array = np.asarray(given)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{what} is no array: {error}.") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} must hold real numbers, got {array.dtype}.")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
