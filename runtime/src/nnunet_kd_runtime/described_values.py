"""Values of the JSON beside an ONNX network, each checked where it is read: the message names its key and what it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def mapping(described: Json, key: str) -> Json:
    """An object of the JSON.

    Raises:
        KeyError: there is none of this name; as in all functions of this module.
        ValueError: it is something else; as in all functions of this module.
    """
    value = described[key]
    if not isinstance(value, Mapping):
        raise wrong(key, value, "an object with names and values")
    return value


def mappings(described: Json, key: str) -> list[Json]:
    """A list of objects."""
    values = described[key]
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise wrong(key, values, "a list of objects")
    return values


def text(described: Json, key: str) -> str:
    """A name."""
    value = described[key]
    if not isinstance(value, str):
        raise wrong(key, value, "text")
    return value


def count(described: Json, key: str) -> int:
    """A whole number from 1."""
    value = described[key]
    if not is_whole(value) or value < 1:
        raise wrong(key, value, "a whole number of at least 1")
    return int(value)


def sides(described: Json, key: str) -> tuple[int, ...]:
    """Voxels a side of two or three."""
    values = described[key]
    if not _numbers(values) or len(values) not in (2, 3) or not all(is_whole(value) and value > 0 for value in values):
        raise wrong(key, values, "two or three whole numbers of at least 1")
    return tuple(int(value) for value in values)


def lengths(described: Json, key: str, axes: int) -> tuple[float, ...]:
    """Millimetres, one number an axis."""
    values = described[key]
    if not _numbers(values) or len(values) != axes or not all(0 < value < math.inf for value in values):
        raise wrong(key, values, f"{axes} positive numbers, one for each side of patch_size")
    return tuple(float(value) for value in values)


def order_of_axes(described: Json, key: str) -> tuple[int, ...]:
    """An order of an image's three axes."""
    values = described[key]
    if not _numbers(values) or sorted(values) != [0, 1, 2]:
        raise wrong(key, values, "0, 1 and 2 in some order")
    return tuple(int(value) for value in values)


def orders_of_axes(described: Json, forward: str, backward: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An order, and the one that undoes it."""
    there, back = order_of_axes(described, forward), order_of_axes(described, backward)
    if any(there[axis] != place for place, axis in enumerate(back)):
        raise wrong(backward, list(back), f"what undoes {forward} {list(there)}")
    return there, back


def some_axes(described: Json, key: str, axes: int) -> tuple[int, ...]:
    """Some of the patch's axes, each at most once."""
    values = described[key]
    if not _numbers(values) or len(set(values)) < len(values) or not set(values) <= set(range(axes)):
        raise wrong(key, values, f"some of the axes 0 to {axes - 1}, each at most once")
    return tuple(int(value) for value in values)


def optional_text(described: Json, key: str) -> str | None:
    """A name, or nothing."""
    return None if described.get(key) is None else text(described, key)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return is_number(value) and value == int(value)


def wrong(key: str, value: Any, wanted: str) -> ValueError:
    """The error of a value that does not hold."""
    told = repr(value)
    return ValueError(f"{key} is {told if len(told) <= 80 else told[:77] + '...'}, but must be {wanted}")


def _numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(is_number(value) for value in values)
