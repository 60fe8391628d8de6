"""nnU-Net's postprocessing: of some labels together, only the largest connected component stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.described_values import is_whole, wrong
from nnunet_kd_runtime.errors import ModelError

FUNCTION = "remove_all_but_largest_component_from_segmentation"


@dataclass(frozen=True)
class Step:
    """One step: labels that are taken together, and what takes the place of what goes."""

    labels: tuple[int, ...]
    background: int


def steps_of(content: Any, path: Path) -> list[Step]:
    """The steps of nnU-Net's ``postprocessing.json``.

    Args:
        content: the file's, as an export's JSON holds it.
        path: of that JSON, for the message.

    Raises:
        ModelError: it is damaged, or a step is another function; named.
    """
    where = f"{path} has a postprocessing that is not as nnU-Net writes it"
    try:
        functions, arguments = content["postprocessing_fns"], content["postprocessing_kwargs"]
        pairs = list(zip(functions, arguments, strict=True))
        other = [function for function in functions if function != FUNCTION]
        if other:
            raise ModelError(
                f"the model's postprocessing names {other[0]}, which nnunet-kd-runtime does not have (it has {FUNCTION})."
            )
        return [
            Step(tuple(_flat(given["labels_or_regions"])), _label(given.get("background_label", 0)))
            for _, given in pairs
        ]
    except KeyError as error:
        raise ModelError(f"{where}: it has no {error}. Determine it and export again.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{where}: {error}. Determine it and export again.") from error


def postprocess(segmentation: NDArray[Any], steps: Sequence[Step]) -> NDArray[Any]:
    """Apply the steps one after the other to a segmentation ``(z, y, x)``, which is not changed."""
    for step in steps:
        segmentation = keep_largest_component(segmentation, list(step.labels), step.background)
    return segmentation


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
        yield _label(value)


def _label(value: Any) -> int:
    if not is_whole(value) or not 0 <= value < 1 << 16:
        raise wrong("a label", value, "a whole number from 0 to 65535")
    return int(value)
