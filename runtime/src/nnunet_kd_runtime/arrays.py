"""Segmenting arrays instead of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_kd_runtime.backends import BACKENDS
from nnunet_kd_runtime.description import read_model
from nnunet_kd_runtime.memory import Budget
from nnunet_kd_runtime.segmentation import Predictor


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
        ModelError, MissingRequirement, SettingsError: see there.
    """
    opened = read_model(Path(model))
    return Predictor(opened, BACKENDS[backend](opened, device, threads), Budget(memory), mirroring, step)


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
        DataError: the image does not fit the model.
        ModelError, MissingRequirement: see :func:`open_predictor`.
    """
    predictor = model if isinstance(model, Predictor) else open_predictor(model)
    array = np.asarray(image)
    if array.ndim == 3:
        array = array[None]
    stage = None if previous is None else np.asarray(previous).astype(np.float32)
    return predictor.segment(array, spacing, stage).segmentation
