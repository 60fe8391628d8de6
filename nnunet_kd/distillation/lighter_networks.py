"""Copies of a frozen network that share its weights and cost less: of time in mixed precision, of memory with gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_KNOWN = ("torch", "dynamic_network_architectures")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _sharing_weights(network: nn.Module) -> nn.Module:
    """The same modules anew, around the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def half_precision_copy(network: nn.Module, precision: torch.dtype) -> nn.Module:
    """The same for calls under autocast, with convolutions whose weights have its precision already.

    Autocast casts them in every call, and keeps only casts of weights that require a gradient. Values are the same bit for bit,
    since it would have made the same cast. Everything else is shared and stays float32.

    Args:
        network: frozen. If a module is neither PyTorch's nor one of nnU-Net's networks, it may turn autocast off within, and the
            network itself is returned.
        precision: autocast's.
    """
    if any(type(module).__module__.split(".")[0] not in _KNOWN for module in network.modules()):
        return network
    copied = _sharing_weights(network)
    for module in copied.modules():
        if isinstance(module, _CONVOLUTIONS):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().to(precision), requires_grad=False))
    return copied


class _Recomputed(nn.Module):
    """Computes what lies within it again for the backward pass, instead of keeping it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        return checkpoint(self.module, *arguments, use_reentrant=False, preserve_rng_state=False)


def recomputing_copy(network: nn.Module) -> nn.Module:
    """The same for calls with gradients, with the stages of encoder and decoder computed again for the backward pass.

    Args:
        network: frozen and in evaluation mode, so that both computations are the same. Without lists of stages in encoder or
            decoder, as nnU-Net's networks have them, it keeps everything.
    """
    copied = _sharing_weights(network)
    for part in (getattr(copied, name, None) for name in ("encoder", "decoder")):
        stages = getattr(part, "stages", None)
        if isinstance(stages, nn.Sequential | nn.ModuleList):
            for place, stage in enumerate(stages):
                stages[place] = _Recomputed(stage)
    return copied
