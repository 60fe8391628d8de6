"""Teachers as networks: frozen, on the student's device, one or several."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from nnunet_kd.distillation.features import find_encoder, has_encoder
from nnunet_kd.distillation.lighter_networks import half_precision_copy, recomputing_copy
from nnunet_kd.errors import PlanError, TeacherError
from nnunet_kd.system.counts import counted

FeatureTeacher = Literal["first", "in_turn"]


class FrozenTeacher:
    """A teacher's network: evaluation mode, no gradients to its weights, autocast as nnU-Net's.

    It is no module on purpose: nothing that holds it can save, train or synchronise it.

    Attributes:
        network: the plain network, not compiled, in float32.
        channels: of every encoder stage, finest first.
        mirror_axes: spatial axes, from 0, that its training mirrored.
        plans_name: of its plan.
        warnings: what a user must know of how it was loaded.

    Args:
        network, channels, mirror_axes, plans_name, warnings: see there.
        device: the student's.
        compile_backend: of ``torch.compile``, such as ``inductor``; ``None``: not compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: tuple[int, ...],
        device: torch.device,
        compile_backend: str | None = None,
        mirror_axes: tuple[int, ...] = (),
        plans_name: str = "",
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.channels = channels
        self.mirror_axes = mirror_axes
        self.plans_name = plans_name
        self.warnings = warnings
        self.network = network.to(device).eval().requires_grad_(False)
        self._device = device
        called = self.network
        if (precision := self._autocast_precision()) is not None:
            called = half_precision_copy(self.network, precision)
        with_gradient = recomputing_copy(self.network)
        # networks without stage features, as Primus, give logits only
        staged = has_encoder(self.network)
        self._encoder: Callable[[torch.Tensor], list[torch.Tensor]] | None = find_encoder(called) if staged else None
        self._decoder: Callable[[list[torch.Tensor]], torch.Tensor] | None = None
        if staged:
            self._decoder = getattr(called, "decoder", None)
        self._whole: Callable[[torch.Tensor], torch.Tensor] = called
        self._encoder_with_gradient = find_encoder(with_gradient) if staged else None
        self._decoder_with_gradient = getattr(with_gradient, "decoder", None) if staged else None
        if compile_backend is not None:
            compiled = partial(torch.compile, backend=compile_backend)
            self._encoder = None if self._encoder is None else compiled(self._encoder)
            self._decoder = None if self._decoder is None else compiled(self._decoder)
            self._whole = compiled(self._whole)

    def check_features(self, stages: int) -> None:
        """Raise a PlanError unless the network has an encoder that returns features of as many stages as the student's."""
        find_encoder(self.network)
        if len(self.channels) != stages:
            raise PlanError(
                f"the teacher's network has {counted(len(self.channels), 'stage')}, the student's {stages}, so their "
                f"features cannot be "
                f"compared. Any teacher can teach by its logits: -m logits or -m figkd."
            )

    def check_decodes(self, stages: int) -> None:
        """Raise a PlanError unless, besides, the network's decoder turns encoder features into logits."""
        self.check_features(stages)
        if self._decoder is None:
            raise PlanError(
                f"the teacher's network {type(self.network).__name__} has no decoder that turns stage features into logits, "
                f"which this objective needs. PlainConvUNet, ResidualEncoderUNet and their relatives have one."
            )

    def _autocast_precision(self) -> torch.dtype | None:
        """nnU-Net's: mixed precision on GPUs, none elsewhere."""
        return torch.get_autocast_dtype("cuda") if self._device.type == "cuda" else None

    def _autocast(self) -> AbstractContextManager[object]:
        precision = self._autocast_precision()
        return contextlib.nullcontext() if precision is None else torch.autocast(self._device.type, precision)

    @torch.no_grad()
    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Stage features of ``image (B, C, *spatial)``, finest first; only the encoder runs."""
        assert self._encoder is not None
        with self._autocast():
            return list(self._encoder(image))

    @torch.no_grad()
    def outputs(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Stage features and full-resolution logits ``(B, K, *spatial)``, in one pass; no features where it has no stages."""
        with self._autocast():
            features = [] if self._encoder is None else list(self._encoder(image))
            return features, self._whole(image) if self._decoder is None else self._decoder(features)

    def encode_with_gradient(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Stage features through which gradients reach ``image``; not compiled, in ``image``'s own precision.

        What lies between two stages is computed again for the backward pass instead of kept.
        """
        assert self._encoder_with_gradient is not None
        return list(self._encoder_with_gradient(image))

    def decode_with_gradient(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits through which gradients reach ``features``; otherwise as :meth:`encode_with_gradient`."""
        assert self._decoder_with_gradient is not None
        logits: torch.Tensor = self._decoder_with_gradient(list(features))
        return logits


def shared_axes(each: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The axes that all of at least one name, in order."""
    return tuple(sorted(set(each[0]).intersection(*each)))


class Teachers:
    """One or several teachers as one: features of one of them, logits of all.

    Args:
        members: at least one.
        feature_teacher: ``first``: features are always the first one's; ``in_turn``: of one after the other, see
            :class:`~nnunet_kd.distillation.turns.Turns`.
        has_regions: whether logits are independent per channel (sigmoid) instead of exclusive (softmax).

    Raises:
        TeacherError: the teachers take turns but differ in their channels, which projections are built for.
    """

    def __init__(self, members: Sequence[FrozenTeacher], feature_teacher: FeatureTeacher, has_regions: bool) -> None:
        self.members = list(members)
        self.channels = self.members[0].channels
        self._in_turn = feature_teacher == "in_turn"
        self._has_regions = has_regions
        if self._in_turn and any(member.channels != self.channels for member in self.members):
            widths = "; ".join(str(member.channels) for member in self.members)
            raise TeacherError(
                f"teachers that take turns must have the same channels in every stage, but have {widths}. "
                f"Use `feature_teacher: first`, or teachers of one plan."
            )

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Spatial axes that every teacher's training mirrored."""
        return shared_axes([member.mirror_axes for member in self.members])

    def feature_teacher(self, place: int) -> FrozenTeacher:
        """The one that features come from if it is the turn of ``place`` (from 0)."""
        return self.members[place] if self._in_turn else self.members[0]

    def outputs(
        self, image: torch.Tensor, place: int, features: bool, logits: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """What objectives need of the teachers, and no more.

        Args:
            image: ``(B, C, *spatial)``.
            place: whose turn it is, from 0.
            features, logits: whether anything needs them.

        Returns:
            The feature teacher's stage features, or an empty list; logits as :meth:`combine` makes them, or ``None``.
        """
        chosen = self.feature_teacher(place)
        if not logits:
            return (chosen.features(image) if features else []), None
        stages: list[torch.Tensor] = []

        def each() -> Iterator[torch.Tensor]:
            nonlocal stages
            for member in self.members:
                own_stages, own_logits = member.outputs(image)
                if features and member is chosen:
                    stages = own_stages
                yield own_logits.float()

        combined = next(each()) if len(self.members) == 1 else self.combine(each())
        return stages, combined

    @torch.no_grad()
    def combine(self, each: Iterable[torch.Tensor]) -> torch.Tensor:
        """Logits of the mean probability, ``(B, K, *spatial)``, of each teacher's, which are taken in one by one.

        Regions: the logit of the mean sigmoid. Otherwise the logarithm of the mean softmax, to which the mean over teachers of
        each voxel's log-partition is added (ours): softmax does not see it, and teachers that agree give back their own
        logits, which objectives on raw logits need.
        """
        count = len(self.members)
        sums: tuple[torch.Tensor, torch.Tensor] | None = None
        for logits in each:
            if self._has_regions:
                new = functional.logsigmoid(logits), functional.logsigmoid(-logits)
                sums = new if sums is None else (torch.logaddexp(sums[0], new[0]), torch.logaddexp(sums[1], new[1]))
            else:
                partition = logits.logsumexp(1, keepdim=True)
                new = logits - partition, partition
                sums = new if sums is None else (torch.logaddexp(sums[0], new[0]), sums[1] + new[1])
        assert sums is not None
        return sums[0] - sums[1] if self._has_regions else sums[0] - math.log(count) + sums[1] / count
