"""The report's pictures of single cases: image, reference, every method's contours, a zoomed box (paper, Fig. 3)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import ndimage

from nnunet_kd.evaluation.charts import PALETTE
from nnunet_kd.evaluation.results import Values
from nnunet_kd.nnunet.scoring import mask_of

Box = tuple[slice, slice]
Voxels = npt.NDArray[np.float32]
_REFERENCE_COLOUR = "white"
_INCHES, _DPI = 2.4, 130


@dataclass(frozen=True)
class CaseImages:
    """Everything to draw of a case, axes towards superior, posterior and left where the files tell.

    Attributes:
        image: (Z, Y, X), one channel.
        reference: (Z, Y, X) labels.
        predictions: (Z, Y, X) labels by method.
        spacing: mm along Z, Y, X.
        flipped: axes that run against those of the files.
    """

    image: Voxels
    reference: Voxels
    predictions: Mapping[str, Voxels]
    spacing: tuple[float, float, float]
    flipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One picture: whole slice above, zoomed box below.

    Attributes:
        title: ``image``, ``reference`` or the method's name.
        png: the picture.
    """

    title: str
    png: bytes


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """Contour colours that show on grey and beside the yellow box."""
    order = (PALETTE[5], PALETTE[1], PALETTE[2], PALETTE[3])
    return {name: order[index % len(order)] for index, name in enumerate(classes)}


def choose_cases(method: Values, reference: Values, better: int) -> dict[str, int]:
    """Indices of the cases in which a method does worst, median and best against the reference.

    Args:
        method, reference: a metric by case (cases,).
        better: 1 if higher is better, -1 if lower.

    Returns:
        ``worst``, ``median``, ``best``, as far as there are different cases; cases with NaN are not taken.
    """
    difference = (method - reference) * better
    order = [int(index) for index in np.argsort(difference, kind="stable") if not np.isnan(difference[index])]
    if not order:
        return {}
    chosen = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
    first_name = {index: name for name, index in reversed(chosen.items())}
    return {name: index for index, name in reversed(first_name.items())}


def slice_axis(spacing: Sequence[float], shape: Sequence[int]) -> int:
    """The axis across slices: the only one of a single voxel, else that of the largest spacing, the first among equals."""
    if list(shape).count(1) == 1:
        return list(shape).index(1)
    return int(np.argmax(np.round(spacing, 3)))


def informative_slice(images: CaseImages, axis: int) -> int:
    """The slice in which the methods are wrong in most voxels, counting those most where they differ among themselves.

    Without any error: the slice with most of the reference, or the middle one.
    """
    wrong = np.stack([prediction != images.reference for prediction in images.predictions.values()]).astype(np.float32)
    others = tuple(other for other in range(3) if other != axis)
    score = (wrong.mean(0) + wrong.std(0)).sum(axis=others)
    if not score.any():
        score = (images.reference > 0).sum(axis=others)
    return int(np.argmax(score)) if score.any() else score.size // 2


def zoom_box(images: CaseImages, axis: int, position: int) -> Box:
    """A square (in mm) around the largest connected error of the slice, a third to two thirds of its shorter side."""
    reference = _flat(images.reference, axis, position)
    errors = np.any(
        [_flat(prediction, axis, position) != reference for prediction in images.predictions.values()], axis=0
    )
    labels, count = ndimage.label(errors if errors.any() else reference > 0, np.ones((3, 3)))
    spacing = np.delete(np.asarray(images.spacing), axis)
    extent = np.asarray(reference.shape) * spacing
    if count:
        sizes = np.bincount(labels.ravel())[1:]
        rows, columns = ndimage.find_objects(labels)[int(np.argmax(sizes))]
        centre = np.array([rows.start + rows.stop, columns.start + columns.stop]) / 2 * spacing
        wanted = 1.6 * max((rows.stop - rows.start) * spacing[0], (columns.stop - columns.start) * spacing[1])
    else:
        centre, wanted = extent / 2, 0.0
    side = float(np.clip(wanted, extent.min() / 3, extent.min() * 2 / 3))
    starts = np.clip(centre - side / 2, 0, extent - side)
    first = np.floor(starts / spacing).astype(int)
    size = np.maximum(2, np.ceil(side / spacing)).astype(int)
    return slice(int(first[0]), int(first[0] + size[0])), slice(int(first[1]), int(first[1] + size[1]))


def draw_panels(images: CaseImages, classes: Mapping[str, int | tuple[int, ...]]) -> tuple[list[Panel], int, int]:
    """Pictures of one case on its most informative slice.

    Args:
        images: the case.
        classes: name and label, or labels of a region, in the order of ``dataset.json``.

    Returns:
        Panels ``image``, ``reference``, then one per method (its contours in colour, the reference's thin and
        white), the axis of the slice and its index in the file's array.
    """
    axis = slice_axis(images.spacing, images.reference.shape)
    position = informative_slice(images, axis)
    box = zoom_box(images, axis, position)
    flat = _flat(images.image, axis, position)
    aspect = float(np.delete(np.asarray(images.spacing), axis)[0] / np.delete(np.asarray(images.spacing), axis)[1])
    # rows run to posterior in axial slices (drawn downwards), to superior in others (drawn upwards)
    origin: Literal["upper", "lower"] = "upper" if axis == 0 else "lower"
    low, high = np.percentile(images.image, [0.5, 99.5])
    colours = class_colours(list(classes))
    reference = _flat(images.reference, axis, position)

    def panel(title: str, prediction: Voxels | None, with_reference: bool) -> Panel:
        height = _INCHES * (flat.shape[0] * aspect / flat.shape[1])
        figure = Figure(figsize=(_INCHES, height + _INCHES), facecolor="black")
        whole = figure.add_axes((0, _INCHES / (height + _INCHES), 1, height / (height + _INCHES)))
        zoomed = figure.add_axes((0, 0, 1, _INCHES / (height + _INCHES)))
        for drawn in (whole, zoomed):
            drawn.imshow(flat, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, origin=origin)
            drawn.set_axis_off()
            if prediction is not None:
                _contours(drawn, prediction, classes, colours, 2.0 if drawn is zoomed else 1.2)
            if with_reference:
                _contours(drawn, reference, classes, dict.fromkeys(classes, _REFERENCE_COLOUR), 1.1, "dotted")
        rows, columns = box
        _show(whole, (slice(0, flat.shape[0]), slice(0, flat.shape[1])), origin)
        _show(zoomed, box, origin)
        corner = (columns.start - 0.5, rows.start - 0.5)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        whole.add_patch(Rectangle(corner, *size, fill=False, edgecolor="yellow", linestyle="--", linewidth=1.2))
        whole_axes = Rectangle((0, 0), 1, 1, transform=zoomed.transAxes, fill=False)
        whole_axes.set(edgecolor="yellow", linestyle="--", linewidth=3)
        zoomed.add_patch(whole_axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="black")
        return Panel(title, buffer.getvalue())

    panels = [panel("image", None, False), panel("reference", reference, False)]
    panels += [panel(name, _flat(p, axis, position), True) for name, p in images.predictions.items()]
    return panels, axis, images.image.shape[axis] - 1 - position if axis in images.flipped else position


def _show(axis: Axes, box: Box, origin: Literal["upper", "lower"]) -> None:
    """Limit the view: contours would widen it by the voxel around the image."""
    rows, columns = box
    edges = (rows.start - 0.5, rows.stop - 0.5)
    axis.set_xlim(columns.start - 0.5, columns.stop - 0.5)
    axis.set_ylim(edges if origin == "lower" else edges[::-1])


def _flat(volume: Voxels, axis: int, position: int) -> Voxels:
    """One slice, as (rows, columns)."""
    flat: Voxels = np.moveaxis(volume, axis, 0)[position]
    return flat


def _contours(
    axis: Axes,
    labels: Voxels,
    classes: Mapping[str, int | tuple[int, ...]],
    colours: Mapping[str, str],
    width: float,
    style: str = "solid",
) -> None:
    for name, label in classes.items():
        mask = mask_of(labels, label)
        if not mask.any():
            continue
        # a frame of background closes contours that touch the image's edge
        padded = np.pad(mask.astype(float), 1)
        rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
        axis.contour(columns, rows, padded, levels=[0.5], colors=[colours[name]], linewidths=width, linestyles=style)
