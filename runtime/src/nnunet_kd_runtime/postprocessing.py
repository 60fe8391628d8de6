"""nnU-Net's postprocessing: of some labels together, only the largest connected component stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.errors import ModelError

FUNCTION = "remove_all_but_largest_component_from_segmentation"


def postprocess(segmentation: NDArray[Any], steps: Mapping[str, Any]) -> NDArray[Any]:
    """Apply the steps of nnU-Net's ``postprocessing.json``.

    Args:
        segmentation: ``(z, y, x)``; not changed.
        steps: the file's content.

    Raises:
        ModelError: a step is another function; named.
    """
    result = segmentation
    for function, arguments in zip(steps["postprocessing_fns"], steps["postprocessing_kwargs"], strict=True):
        if function != FUNCTION:
            raise ModelError(
                f"the model's postprocessing names {function}, which nnunet-kd-runtime does not have (it has {FUNCTION})."
            )
        labels = list(_flat(arguments["labels_or_regions"]))
        result = keep_largest_component(result, labels, int(arguments.get("background_label", 0)))
    return result


def keep_largest_component(segmentation: NDArray[Any], labels: list[int], background: int = 0) -> NDArray[Any]:
    """The segmentation with ``labels`` only in their largest component; equally large ones stay all.

    Voxels are neighbours by face, edge or corner.
    """
    from scipy import ndimage

    mask = np.isin(segmentation, labels)
    components, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    result = segmentation.copy()
    result[mask & (sizes[components] < sizes.max())] = background
    return result


def _flat(value: Any) -> Iterator[int]:
    """Labels of a label, a region, or a list of both."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield int(value)
