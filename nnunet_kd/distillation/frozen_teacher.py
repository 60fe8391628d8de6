"""Teachers as networks: frozen, on the student's device, one or several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from nnunet_kd.distillation.features import find_encoder, has_encoder
from nnunet_kd.errors import PlanError, TeacherError

FeatureTeacher = Literal["first", "in_turn"]


class FrozenTeacher:
    """A teacher's network: evaluation mode, no gradients to its weights, autocast as nnU-Net's.

    It is no module on purpose: nothing that holds it can save, train or synchronise it.

    Attributes:
        channels: of every encoder stage, finest first.
        mirror_axes: spatial axes, from 0, that its training mirrored.
        plans_name: of its plan.
        warnings: what a user must know of how it was loaded.
        network: the plain network, not compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: tuple[int, ...],
        device: torch.device,
        compiled: bool,
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
        # networks without stage features, as Primus, give logits only
        self._plain_encoder = find_encoder(self.network) if has_encoder(self.network) else None
        self._plain_decoder = getattr(self.network, "decoder", None) if self._plain_encoder is not None else None
        self._encoder: Callable[[torch.Tensor], list[torch.Tensor]] | None = self._plain_encoder
        self._decoder: Callable[[list[torch.Tensor]], torch.Tensor] | None = self._plain_decoder
        self._whole: Callable[[torch.Tensor], torch.Tensor] = self.network
        if compiled:
            self._encoder = torch.compile(self._plain_encoder) if self._plain_encoder is not None else None
            self._decoder = torch.compile(self._plain_decoder) if self._plain_decoder is not None else None
            self._whole = torch.compile(self.network)

    def check_features(self, stages: int) -> None:
        """Raise a PlanError unless the network has an encoder that returns features of as many stages as the student's."""
        find_encoder(self.network)
        if len(self.channels) != stages:
            raise PlanError(
                f"the teacher's network has {len(self.channels)} stages, the student's {stages}, so their features cannot be "
                f"compared. Any teacher can teach by its logits: -m logits or -m figkd."
            )

    def check_decodes(self, stages: int) -> None:
        """Raise a PlanError unless, besides, the network's decoder turns encoder features into logits."""
        self.check_features(stages)
        if self._plain_decoder is None:
            raise PlanError(
                f"the teacher's network {type(self.network).__name__} has no decoder that turns stage features into logits, "
                f"which this objective needs. PlainConvUNet, ResidualEncoderUNet and their relatives have one."
            )

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda") if self._device.type == "cuda" else contextlib.nullcontext()

    @torch.inference_mode()
    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Stage features of ``image (B, C, *spatial)``, finest first; only the encoder runs."""
        assert self._encoder is not None
        with self._autocast():
            return list(self._encoder(image))

    @torch.inference_mode()
    def outputs(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Stage features and full-resolution logits ``(B, K, *spatial)``, in one pass; no features where it has no stages."""
        with self._autocast():
            features = [] if self._encoder is None else list(self._encoder(image))
            return features, self._whole(image) if self._decoder is None else self._decoder(features)

    def encode_with_gradient(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Stage features through which gradients reach ``image``; not compiled, in ``image``'s own precision."""
        assert self._plain_encoder is not None
        return list(self._plain_encoder(image))

    def decode_with_gradient(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits through which gradients reach ``features``; not compiled, in their own precision."""
        assert self._plain_decoder is not None
        logits: torch.Tensor = self._plain_decoder(list(features))
        return logits


def shared_axes(each: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The axes that all of at least one name, in order."""
    return tuple(sorted(set(each[0]).intersection(*each)))


class Teachers:
    """One or several teachers as one: features of one of them, logits of all.

    Args:
        members: at least one.
        feature_teacher: ``first``: features are always the first one's; ``in_turn``: of one per iteration.
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

    def feature_teacher(self, iteration: int) -> FrozenTeacher:
        """The one that features come from in an iteration (counted from 0)."""
        return self.members[iteration % len(self.members)] if self._in_turn else self.members[0]

    def outputs(
        self, image: torch.Tensor, iteration: int, features: bool, logits: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """What objectives need of the teachers, and no more.

        Args:
            image: ``(B, C, *spatial)``.
            iteration: since the start of training, counted from 0.
            features, logits: whether anything needs them.

        Returns:
            The feature teacher's stage features, or an empty list; logits as :meth:`combine` makes them, or ``None``.
        """
        chosen = self.feature_teacher(iteration)
        if not logits:
            return (chosen.features(image) if features else []), None
        stages: list[torch.Tensor] = []
        each = []
        for member in self.members:
            own_stages, own_logits = member.outputs(image)
            each.append(own_logits.float())
            if features and member is chosen:
                stages = own_stages
        return stages, each[0] if len(each) == 1 else self.combine(torch.stack(each))

    @torch.inference_mode()
    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits ``(teachers, B, K, *spatial)`` of the mean probability, ``(B, K, *spatial)``.

        Regions: the logit of the mean sigmoid. Otherwise the logarithm of the mean softmax, to which the mean over teachers of
        each voxel's log-partition is added (ours): softmax does not see it, and teachers that agree give back their own
        logits, which objectives on raw logits need.
        """
        count = torch.tensor(float(len(logits))).log().item()
        if self._has_regions:
            inside = functional.logsigmoid(logits).logsumexp(0) - count
            outside = functional.logsigmoid(-logits).logsumexp(0) - count
            return inside - outside
        partition = logits.logsumexp(2, keepdim=True)
        return (logits - partition).logsumexp(0) - count + partition.mean(0)
