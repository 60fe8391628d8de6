"""One projection between a student's and a teacher's channels per encoder stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from nnunet_kd.distillation.objectives.base import NetworkPair
from nnunet_kd.losses.projection import ChannelProjection


def stage_projections(networks: NetworkPair, learned: bool = True) -> nn.ModuleList:
    """One :class:`~nnunet_kd.losses.projection.ChannelProjection` per encoder stage, finest first."""
    return nn.ModuleList(
        ChannelProjection(student, teacher, learned)
        for student, teacher in zip(networks.student_channels, networks.teacher_channels, strict=True)
    )


def each(projections: Iterable[nn.Module]) -> Iterator[ChannelProjection]:
    """The members of :func:`stage_projections` as what they are."""
    for projection in projections:
        assert isinstance(projection, ChannelProjection)
        yield projection
