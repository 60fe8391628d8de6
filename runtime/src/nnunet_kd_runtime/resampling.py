"""nnU-Net's resampling functions, by the names that plans give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.described_values import is_number, is_whole, wrong
from nnunet_kd_runtime.errors import DataError, ModelError
from nnunet_kd_runtime.interpolation import MODES, interpolate
from nnunet_kd_runtime.label_resizing import resize_labels
from nnunet_kd_runtime.resizing import resize, spline_along
from nnunet_kd_runtime.separate_axis import ANISOTROPY, separate_axis

Array = NDArray[Any]


@dataclass(frozen=True)
class Resampling:
    """One resampling function with its arguments, as a plan names it.

    Attributes:
        function: its name in nnU-Net.
        arguments: what nnU-Net hands it besides array, shape and spacings.
    """

    function: str
    arguments: Mapping[str, Any]

    def check(self, role: str) -> None:
        """Refuse what is not nnU-Net's.

        Args:
            role: data, seg or probabilities, for the message.

        Raises:
            ModelError: another function, another argument, or a mode that is not reproduced here; each by its name.
            ValueError: an argument's value is none that the function takes.
        """
        where = f"the model's plan resamples {role} with {self.function}"
        if self.function not in ARGUMENTS:
            raise ModelError(
                f"{where}, which nnunet-kd-runtime does not have. It has {', '.join(ARGUMENTS)}. Predict with nnU-Net."
            )
        unknown = [name for name in self.arguments if name not in ARGUMENTS[self.function]]
        if unknown:
            raise ModelError(f"{where} and the argument {unknown[0]}, which that function does not take in nnU-Net.")
        for name, value in self.arguments.items():
            holds, wanted = VALUES.get(name, (_anything, ""))
            if not holds(value):
                raise wrong(f"{name} of resampling_fn_{role}_kwargs", value, wanted)
        modes = [self.arguments[name] for name in ("mode", "aniso_axis_mode") if name in self.arguments]
        for mode in modes:
            if mode not in MODES:
                raise ModelError(
                    f"{where} and mode {mode!r}, which nnunet-kd-runtime does not have: {', '.join(MODES)}."
                )

    def __call__(self, array: Array, shape: Sequence[int], current: Sequence[float], new: Sequence[float]) -> Array:
        """Resample.

        Args:
            array: ``(channels, *spatial)``.
            shape: voxels a spatial axis.
            current, new: spacings in millimetres.

        Returns:
            The array itself where nothing changes; a new one otherwise. Its type is what nnU-Net gives: the array's
            own, float32 after ``resample_torch_*``.

        Raises:
            DataError: nnU-Net's function fails here, too.
        """
        function: Callable[..., Array] = _FUNCTIONS[self.function]
        return function(array, [int(size) for size in shape], current, new, **self.arguments)


def resample_data_or_seg_to_shape(
    array: Array,
    shape: Sequence[int],
    current: Sequence[float],
    new: Sequence[float],
    is_seg: bool = False,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISOTROPY,
) -> Array:
    """nnU-Net's default: splines in float64, the result rounded to the array's type; see :class:`Resampling`."""
    axis = separate_axis(force_separate_z, current, new, separate_z_anisotropy_threshold)
    if list(array.shape[1:]) == list(shape):
        return array
    result = np.zeros((len(array), *shape), array.dtype)
    # batchgenerators looks for the labels of each slice alone: their type is the slice's, which is float64
    resize_one = resize_labels if is_seg else resize
    for channel, values in enumerate(array):
        values = values.astype(float)
        if axis is None:
            result[channel] = resize_one(values, shape, order)
            continue
        in_plane = [size for other, size in enumerate(shape) if other != axis]
        flat = np.zeros([values.shape[axis] if other == axis else size for other, size in enumerate(shape)])
        for index in range(values.shape[axis]):
            place = (slice(None),) * axis + (index,)
            flat[place] = resize_one(values[place], in_plane, order)
        if values.shape[axis] == shape[axis]:
            result[channel] = flat
        elif not is_seg or order_z == 0:
            result[channel] = spline_along(flat, axis, shape[axis], order_z)
        else:
            for label in np.unique(flat):
                score = spline_along((flat == label).astype(float), axis, shape[axis], order_z)
                result[channel][np.round(score) > 0.5] = label
    return result


def resample_torch_simple(
    array: Array,
    shape: Sequence[int],
    is_seg: bool = False,
    memefficient_seg_resampling: bool = False,
    mode: str = "linear",
) -> Array:
    """nnU-Net's function of that name: ``F.interpolate`` of values, or of the labels' indicators."""
    if list(array.shape[1:]) == list(shape):
        return array
    if not is_seg:
        return interpolate(array.astype(np.float32, copy=False), shape, mode)
    labels = np.unique(array)
    result = np.zeros((len(array), *shape), np.int8 if labels.max() < 127 else np.int16)
    if memefficient_seg_resampling:
        for label in labels:
            result[interpolate((array == label).astype(np.float32), shape, mode) > 0.5] = label
        return result
    scale = np.float32(1000)
    scores = np.empty((len(labels), len(array), *shape), np.float16)
    certain = np.zeros(result.shape, bool)
    for index, label in enumerate(labels):
        scores[index] = interpolate((array == label).astype(np.float32) * scale, shape, mode)
        mask = scores[index] > 0.7 * scale
        result[mask] = label
        certain |= mask
    result[~certain] = labels[scores[:, ~certain].argmax(0)]
    return result


def resample_torch_fornnunet(
    array: Array,
    shape: Sequence[int],
    current: Sequence[float],
    new: Sequence[float],
    is_seg: bool = False,
    memefficient_seg_resampling: bool = False,
    force_separate_z: bool | None = None,
    separate_z_anisotropy_threshold: float = ANISOTROPY,
    mode: str = "linear",
    aniso_axis_mode: str = "nearest-exact",
    **_: Any,
) -> Array:
    """nnU-Net's function of that name; threads and device are of no meaning here; see :class:`Resampling`."""
    axis = separate_axis(force_separate_z, current, new, separate_z_anisotropy_threshold)
    if axis is None:  # nnU-Net drops the mode here
        return resample_torch_simple(array, shape, is_seg, memefficient_seg_resampling)
    slices = np.moveaxis(array, axis + 1, 1)
    channels, depth = slices.shape[:2]
    in_plane = [size for other, size in enumerate(shape) if other != axis]
    flat = np.ascontiguousarray(slices).reshape(channels * depth, *slices.shape[2:])
    flat = resample_torch_simple(flat, in_plane, is_seg, memefficient_seg_resampling, mode)
    whole = np.moveaxis(flat.reshape(channels, depth, *in_plane), 1, axis + 1)
    return resample_torch_simple(whole, shape, is_seg, memefficient_seg_resampling, aniso_axis_mode)


def _simple_from_a_plan(
    array: Array, shape: Sequence[int], current: Sequence[float], new: Sequence[float], **arguments: Any
) -> Array:
    """From a plan, nnU-Net hands the spacings to the arguments ``is_seg`` and ``num_threads``: it fails but for equal shapes."""
    clash = [name for name in ("is_seg", "num_threads") if name in arguments]
    if clash or list(array.shape[1:]) != list(shape):
        raise DataError(
            "nnU-Net cannot resample with resample_torch_simple from a plan: it hands the spacings to the arguments is_seg "
            "and num_threads and fails. Use resample_torch_fornnunet."
        )
    return array


def no_resampling_hack(array: Array, shape: Sequence[int], current: Sequence[float], new: Sequence[float]) -> Array:
    """The array as it is."""
    return array


_TORCH = {"is_seg", "num_threads", "device", "memefficient_seg_resampling", "mode"}
_SEPARATE = {"force_separate_z", "separate_z_anisotropy_threshold"}
ARGUMENTS: dict[str, set[str]] = {
    "resample_data_or_seg_to_shape": {"is_seg", "order", "order_z"} | _SEPARATE,
    "resample_torch_simple": _TORCH,
    "resample_torch_fornnunet": _TORCH | _SEPARATE | {"aniso_axis_mode"},
    "no_resampling_hack": set(),
}
"""Function: the arguments that a plan may give it."""


def _anything(value: Any) -> bool:
    return True


def _is_order(value: Any) -> bool:
    return isinstance(value, int) and is_whole(value) and 0 <= value <= 5


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or value in (0, 1)


VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "order": (_is_order, "a whole number from 0 to 5"),
    "order_z": (_is_order, "a whole number from 0 to 5"),
    "is_seg": (_is_switch, "true or false"),
    "memefficient_seg_resampling": (_is_switch, "true or false"),
    "force_separate_z": (lambda value: value is None or _is_switch(value), "true, false or null"),
    "separate_z_anisotropy_threshold": (lambda value: is_number(value) and value > 0, "a positive number"),
}
"""Argument: whether a value holds, and what it must be. Arguments that change nothing here are not looked at."""
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "resample_data_or_seg_to_shape": resample_data_or_seg_to_shape,
    "resample_torch_simple": _simple_from_a_plan,
    "resample_torch_fornnunet": resample_torch_fornnunet,
    "no_resampling_hack": no_resampling_hack,
}
