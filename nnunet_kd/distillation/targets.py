"""nnU-Net's training targets as class maps, whatever kind of labels the dataset has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class Targets:
    """The reference of a batch at full resolution.

    Attributes:
        classes: ``(B, *spatial)``, int64. Labels as in the dataset; with regions, 0 where there is none and otherwise the
            place (from 1) of the last region that contains the voxel, which is how nnU-Net turns regions into labels.
            Ignored voxels are 0.
        valid: ``(B, 1, *spatial)``, bool: ``False`` where the label is to be ignored. ``None``: nothing is.
        count: number of classes in ``classes``, background included.
    """

    classes: torch.Tensor
    valid: torch.Tensor | None
    count: int


class TargetsOnDemand(Targets):
    """Targets that are read when they are first looked at: an objective on features alone never does.

    Args:
        read: makes them.
    """

    def __init__(self, read: Callable[[], Targets]) -> None:
        object.__setattr__(self, "_read", read)

    @cached_property
    def _found(self) -> Targets:
        found: Targets = self.__dict__["_read"]()
        return found

    def __getattr__(self, name: str) -> Any:
        if name in ("classes", "valid", "count"):
            return getattr(self._found, name)
        raise AttributeError(name)


def read_targets(target: torch.Tensor, has_regions: bool, ignore_label: int | None, heads: int) -> Targets:
    """Read nnU-Net's full-resolution target.

    Args:
        target: ``(B, 1, *spatial)`` labels; with regions ``(B, R, *spatial)`` of 0 and 1, followed by a channel that is 1 where
            voxels are ignored if there is an ignore label.
        has_regions: which of the two it is.
        ignore_label: the label's value; ``None``: no voxel is ignored.
        heads: output channels of the network, ``R`` or the number of labels.
    """
    if not has_regions:
        labels = target[:, 0].long()
        valid = None if ignore_label is None else labels != ignore_label
        classes = labels if valid is None else labels.where(valid, torch.zeros_like(labels))
        return Targets(classes, None if valid is None else valid[:, None], heads)
    regions = target[:, :heads] > 0
    places = torch.arange(1, heads + 1, device=target.device).view(1, -1, *[1] * (target.ndim - 2))
    classes = (regions * places).amax(1)
    if ignore_label is None:
        return Targets(classes, None, heads + 1)
    valid = target[:, heads : heads + 1] == 0
    return Targets(classes * valid[:, 0], valid, heads + 1)
