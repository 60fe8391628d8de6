"""The demonstration's picture: image, reference and every model's segmentation, on the slice with the most foreground."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_kd.system.files import write_atomically

# Okabe and Ito's palette, told apart by colour-blind eyes
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00")


def draw(
    images: list[Path], reference: Path, predictions: Mapping[str, Path], labels: Mapping[str, int], to: Path
) -> None:
    """Write the picture of a few cases.

    Args:
        images: first channel of each case.
        reference: folder of reference segmentations.
        predictions: folder of segmentations by the model's name.
        labels: foreground values by name.
        to: the PNG.
    """
    columns = ["image", "reference", *predictions]
    figure = Figure(figsize=(2.6 * len(columns), 2.75 * len(images) + 0.5), layout="constrained")
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    colours = ListedColormap(_COLOURS[: len(labels)])
    for row, image_path in zip(axes, images, strict=True):
        name = image_path.name.replace("_0000", "")
        image, truth = _read(image_path), _read(reference / name)
        at = int((truth > 0).sum(axis=(1, 2)).argmax())
        spacing = sitk.ReadImage(str(image_path)).GetSpacing()
        for axis, column in zip(row, columns, strict=True):
            axis.imshow(image[at], cmap="gray", aspect=spacing[1] / spacing[0])
            if column != "image":
                segmentation = truth if column == "reference" else _read(predictions[column] / name)
                shown = np.ma.masked_equal(segmentation[at], 0)
                axis.imshow(
                    shown,
                    cmap=colours,
                    vmin=1,
                    vmax=max(2, len(labels)),
                    alpha=0.75,
                    interpolation="nearest",
                    aspect=spacing[1] / spacing[0],
                )
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{name.split('.')[0]}, slice {at}", fontsize=8)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=10)
    handles = [Patch(color=colour, label=label) for label, colour in zip(labels, _COLOURS, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(labels), frameon=False)
    write_atomically(to, lambda file: figure.savefig(file, format="png", dpi=110))


def _read(path: Path) -> Any:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
