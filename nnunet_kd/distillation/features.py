"""Encoder features of a network while it trains."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_kd.errors import PlanError


def plain_module(network: nn.Module) -> nn.Module:
    """The network beneath ``DistributedDataParallel`` and ``torch.compile``."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def has_encoder(network: nn.Module) -> bool:
    """Whether a network has an encoder, which returns one feature per stage."""
    return isinstance(getattr(plain_module(network), "encoder", None), nn.Module)


def find_encoder(network: nn.Module) -> nn.Module:
    """The part of an nnU-Net that returns one feature per stage.

    Raises:
        PlanError: the network has no ``encoder``.
    """
    plain = plain_module(network)
    if not has_encoder(plain):
        raise PlanError(
            f"the network {type(plain).__name__} has no encoder that returns stage features, which distillation of features "
            f"needs. PlainConvUNet, ResidualEncoderUNet and their relatives have one. Any teacher can teach by its logits: "
            f"-m logits or -m figkd."
        )
    encoder = plain.encoder
    assert isinstance(encoder, nn.Module)
    return encoder


def encoder_channels(network: nn.Module) -> tuple[int, ...] | None:
    """Channels of every encoder stage, finest first, as the encoder itself says; ``None`` if it does not."""
    said = getattr(getattr(plain_module(network), "encoder", None), "output_channels", None)
    return tuple(map(int, said)) if isinstance(said, list | tuple) else None


class EncoderCapture:
    """Keeps what a network's encoder saw and returned in its last forward pass, while ``enabled``.

    One forward hook on the encoder yields every stage. It must be attached before the network is first called: compiled
    code ignores hooks that come later. As a context manager it removes the hook at the end.

    Attributes:
        enabled: off outside of training steps, so that evaluation keeps nothing alive.
        image: the network's input ``(B, C, *spatial)``.
        features: one ``(B, C_i, *spatial_i)`` per stage, finest first, with gradients.
    """

    def __init__(self, network: nn.Module) -> None:
        self.enabled = False
        self.image: torch.Tensor | None = None
        self.features: list[torch.Tensor] = []
        self._handle = find_encoder(network).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self.enabled:
            self.image = inputs[0]
            self.features = list(output)

    def clear(self) -> None:
        """Let go of the last pass, so that its graph can be freed."""
        self.image, self.features = None, []

    def remove(self) -> None:
        """Detach from the network."""
        self._handle.remove()
        self.clear()

    def __enter__(self) -> EncoderCapture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()
