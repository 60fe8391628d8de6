"""What a network's channels mean: labels, or regions painted one over the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_kd_runtime.described_values import is_whole, mapping, wrong


@dataclass(frozen=True)
class Labels:
    """nnU-Net's ``LabelManager``, as far as prediction needs it.

    Attributes:
        values: every label in ascending order, background 0 first; without the ignore label.
        regions_order: of a network trained with regions: the label that each region paints, in painting order.
    """

    values: tuple[int, ...]
    regions_order: tuple[int, ...] | None

    @classmethod
    def of(cls, dataset_json: Mapping[str, Any]) -> Labels:
        """From ``dataset.json``.

        Raises:
            KeyError, ValueError: no background, labels that are no numbers, or regions without an order of them.
        """
        known = mapping(dataset_json, "labels")
        for name, value in known.items():
            if not all(is_whole(v) and 0 <= v < 1 << 16 for v in _several(value)):
                raise wrong(
                    f"the label {name!r} of dataset_json", value, "a whole number from 0 to 65535, or a list of them"
                )
        named = {name: value for name, value in known.items() if name != "ignore"}
        if named.get("background") != 0:
            raise wrong("labels of dataset_json", dict(known), "with the background 0")
        values = tuple(sorted({int(v) for value in named.values() for v in _several(value)}))
        if not any(isinstance(value, list) and len(value) > 1 for value in known.values()):
            return cls(values, None)
        regions = [value for value in named.values() if set(_several(value)) != {0}]
        order = dataset_json.get("regions_class_order")
        largest = np.iinfo(cls(values, None).dtype).max
        if (
            not isinstance(order, list)
            or len(order) != len(regions)
            or not all(is_whole(value) and 0 <= value <= largest for value in order)
        ):
            raise wrong("regions_class_order of dataset_json", order, f"{len(regions)} labels, one for each region")
        return cls(values, tuple(int(value) for value in order))

    @property
    def foreground(self) -> tuple[int, ...]:
        """Labels but for the background."""
        return tuple(value for value in self.values if value != 0)

    @property
    def heads(self) -> int:
        """Channels of the network's output."""
        return len(self.values) if self.regions_order is None else len(self.regions_order)

    @property
    def dtype(self) -> type[np.uint8 | np.uint16]:
        """Of a segmentation in memory."""
        return np.uint8 if len(self.foreground) < 255 else np.uint16

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        """Softmax over channels, or a sigmoid each for regions, in float32.

        Args:
            logits: ``(heads, *spatial)``.
        """
        values = logits.astype(np.float32)
        if self.regions_order is not None:
            return sigmoid(values)
        values -= values.max(axis=0)
        np.exp(values, out=values)
        values /= values.sum(axis=0)
        return values


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """``1 / (1 + exp(-x))``."""
    with np.errstate(over="ignore"):  # exp of a very negative logit is infinite, its sigmoid is 0
        result: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.exp(-logits))
    return result


class Painter:
    """Turns logits or probabilities into a segmentation, one channel at a time and in the channels' order.

    Labels: the first largest channel wins, as with ``argmax``. Regions: each paints where its probability exceeds 1/2.
    """

    def __init__(self, labels: Labels, shape: Sequence[int]) -> None:
        """Start with background.

        Args:
            labels: what channels mean.
            shape: of the segmentation.
        """
        self.segmentation = np.zeros(shape, labels.dtype)
        self._labels = labels
        self._best: NDArray[Any] | None = None
        self._next = 0

    def add_logits(self, channel: NDArray[Any]) -> None:
        """The next channel's logits."""
        if self._labels.regions_order is not None:
            channel = sigmoid(channel.astype(np.float32))
        self.add_probabilities(channel)

    def add_probabilities(self, channel: NDArray[Any]) -> None:
        """The next channel's probabilities."""
        number = self._next
        self._next += 1
        if self._labels.regions_order is not None:
            self.segmentation[channel > 0.5] = self._labels.regions_order[number]
        elif self._best is None:
            self._best = np.array(channel)
        else:
            better = (channel > self._best) | (np.isnan(channel) & ~np.isnan(self._best))
            self.segmentation[better] = number  # nnU-Net's argmax: the channel's number, which is its label
            self._best[better] = channel[better]
