"""What a convolution reads: its inputs as the rows of a regression."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch.nn import functional


class ConvolutionInputs:
    """The windows that a convolution reads of one image, one row for every voxel of its output.

    Args:
        convolution: without groups and dilation.
        image: ``(1, C, *spatial)``.
    """

    def __init__(self, convolution: Any, image: torch.Tensor) -> None:
        self._kernel, self._stride = convolution.kernel_size, convolution.stride
        padding = [amount for amount in reversed(convolution.padding) for _ in range(2)]
        self._padded = functional.pad(image[0], padding)
        self._output = [
            (size - kernel) // stride + 1
            for size, kernel, stride in zip(self._padded.shape[1:], self._kernel, self._stride, strict=True)
        ]

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows ``(n, C * kernel voxels)``, ordered as the kernel's weights, at flattened output places ``(n,)``."""
        sizes = self._padded.shape[1:]
        steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        corner = torch.zeros_like(positions)
        rest = positions
        for axis in reversed(range(len(sizes))):
            corner = corner + rest % self._output[axis] * self._stride[axis] * steps[axis]
            rest = rest // self._output[axis]
        places = itertools.product(*(range(size) for size in self._kernel))
        offsets = torch.tensor([sum(p * step for p, step in zip(place, steps, strict=True)) for place in places])
        index = (corner[:, None] + offsets).to(self._padded.device)
        return self._padded.flatten(1)[:, index].permute(1, 0, 2).reshape(len(positions), -1)

    def mean(self) -> torch.Tensor:
        """Of all rows, ``(C * kernel voxels,)``."""
        means = self._padded
        for kernel, stride, size in zip(self._kernel, self._stride, self._output, strict=True):
            # one axis after the other; each is replaced by one entry per place of the kernel, at the end
            last = stride * (size - 1) + 1
            means = torch.stack([means[:, start : start + last : stride].mean(1) for start in range(kernel)], -1)
        return means.flatten()
