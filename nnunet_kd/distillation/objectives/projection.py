"""One projection between a student's and a teacher's channels per encoder stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from nnunet_kd.distillation.objectives.base import NetworkPair, ObjectiveSettings
from nnunet_kd.losses.projection import ChannelProjection

PROJECTIONS = "projections"
"""The attribute of objectives that holds what :func:`stage_projections` makes."""


class ProjectingSettings(ObjectiveSettings):
    """Settings of objectives that compare features of a student's stage with those of its teacher's."""

    projection_start: Literal["fitted", "random"] = Field(
        "random",
        description="of phi. `fitted`: by least squares on training patches before the first iteration; or `random`",
    )


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
