"""How well a layer of a student stands for its teacher's, and how far the fitting is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int, str], None]
"""Told how many of how many parts are done, and what is done next."""


@dataclass(frozen=True)
class LayerFit:
    """How well a layer of the student stands for its teacher's.

    Attributes:
        name: path of the layer.
        kept: which of the teacher's channels its own stand for, in ascending order.
        teacher_channels: how many there are.
        unknowns, samples: weights per output channel, and voxels that they were fitted to.
        unexplained: share of the teacher's signal at the chosen channels, behind norm and activation, that is left; of heads, of
            the probabilities that they are fitted to. Infinite where the teacher's does not vary and the student's does.
        trained: whether the layer's output counts in training and prediction. nnU-Net's coarsest head has the weight 0, so it
            stays as it is in teacher and student.
    """

    name: str
    kept: tuple[int, ...]
    teacher_channels: int
    unknowns: int
    samples: int
    unexplained: float
    trained: bool = True
