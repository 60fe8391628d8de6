"""From logits back to a segmentation on the image's own grid, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.backends import Backend
from nnunet_kd_runtime.description import Model
from nnunet_kd_runtime.labels import Painter
from nnunet_kd_runtime.memory import Budget, needed_bytes
from nnunet_kd_runtime.preprocessing import Grid, preprocess
from nnunet_kd_runtime.windows import predict_logits

SLAB_BYTES = 64 << 20
"""Probabilities are computed in slabs of about this size."""


@dataclass(frozen=True)
class Result:
    """A case's prediction; axes as the reader gave them.

    Attributes:
        segmentation: labels ``(z, y, x)``.
        probabilities: ``(heads, z, y, x)`` float32, or ``None`` if not asked for.
        grid: where the network saw the image.
    """

    segmentation: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    grid: Grid


@dataclass(frozen=True)
class Predictor:
    """A model with its back end and the options of a run.

    Attributes:
        model: what to run.
        backend: that runs the network.
        budget: of memory.
        mirroring: average over the model's mirror axes.
        step: distance of patches as a share of the patch.
    """

    model: Model
    backend: Backend
    budget: Budget
    mirroring: bool = True
    step: float = 0.5

    def logits(
        self, image: NDArray[np.float32], progress: Callable[[float], None] = lambda share: None
    ) -> NDArray[np.float16]:
        """Logits ``(heads, *spatial)`` of a preprocessed image."""
        model = self.model
        beside = needed_bytes(len(image), image.shape[1:], image.shape[1:])
        return predict_logits(
            self.backend,
            image,
            model.patch_size,
            model.output_channels,
            model.mirror_axes if self.mirroring else (),
            self.step,
            progress,
            lambda shape: self.budget.zeros(shape, np.float16, beside),
        )

    def segment(
        self,
        image: NDArray[np.float32],
        spacing: Any,
        previous: NDArray[Any] | None = None,
        probabilities: bool = False,
    ) -> Result:
        """Preprocess, predict and resample back.

        Args:
            image: ``(channels, z, y, x)`` as the model's reader gives it.
            spacing: millimetres along z, y, x.
            previous: of a cascade: the previous stage's segmentation.
            probabilities: keep them.

        Raises:
            DataError: the image does not fit the model.
        """
        data, grid = preprocess(self.model, image, spacing, previous)
        return self.finish(self.logits(data), grid, probabilities)

    def finish(self, logits: NDArray[np.float16], grid: Grid, probabilities: bool = False) -> Result:
        """Resample logits to the image's grid, decide, and undo crop and transpose."""
        model = self.model
        kept = None
        if probabilities:
            kept = self._probabilities(logits, grid)
            painter = Painter(model.labels, grid.cropped)
            for channel in kept:
                painter.add_probabilities(channel)
        else:
            painter = Painter(model.labels, grid.cropped)
            for channel in range(len(logits)):
                painter.add_logits(self._resample(logits[channel : channel + 1], grid)[0])
        segmentation = np.zeros(grid.whole, model.labels.dtype)
        segmentation[grid.box] = painter.segmentation
        if kept is not None:
            kept = self._uncropped(kept, grid)
        return Result(segmentation.transpose(model.transpose_backward), kept, grid)

    def _resample(self, logits: NDArray[Any], grid: Grid) -> NDArray[Any]:
        function = self.model.resampling["probabilities"]
        return function(logits, grid.cropped, grid.target_spacing, grid.spacing)

    def _probabilities(self, logits: NDArray[np.float16], grid: Grid) -> NDArray[np.float32]:
        """On the cropped grid. A class needs all others for a softmax, so they are resampled first."""
        heads, shape = len(logits), grid.cropped
        beside = needed_bytes(1, shape, logits.shape[1:])
        result = self.budget.zeros((heads, *shape), np.float32, beside)
        for channel in range(heads):
            result[channel] = self._resample(logits[channel : channel + 1], grid)[0]
        rows = max(1, SLAB_BYTES // (4 * heads * int(np.prod(shape[1:]))))
        for start in range(0, shape[0], rows):
            slab = (slice(None), slice(start, start + rows))
            result[slab] = self.model.labels.probabilities(result[slab])
        return result

    def _uncropped(self, probabilities: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        whole = self.budget.zeros((len(probabilities), *grid.whole), np.float32, probabilities.nbytes)
        if self.model.labels.regions_order is None:
            whole[0] = 1
        whole[(slice(None), *grid.box)] = probabilities
        return whole.transpose(0, *[axis + 1 for axis in self.model.transpose_backward])
