"""Small networks whose every parameter is random, so that none can be forgotten unseen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

PLAIN, RESIDUAL = PlainConvUNet, ResidualEncoderUNet


def network(
    kind: type[nn.Module] = PLAIN,
    features: Sequence[int] = (4, 6, 8, 8),
    dimensions: int = 3,
    *,
    eps: float = 0.0,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    blocks: int = 2,
    **options: Any,
) -> nn.Module:
    """Anisotropic in its first two stages; two input channels, three classes, deep supervision."""
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dimensions - 2]
    stages = len(features)
    made = kind(
        **{
            "input_channels": 2,
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": (nn.Conv2d, nn.Conv3d)[dimensions - 2],
            "kernel_sizes": [(1, *(3,) * (dimensions - 1)), *[(3,) * dimensions] * (stages - 1)],
            "strides": [(1,) * dimensions, (1, *(2,) * (dimensions - 1)), *[(2,) * dimensions] * (stages - 2)],
            "num_classes": 3,
            "n_conv_per_stage_decoder": blocks,
            "conv_bias": bias,
            "norm_op": norm,
            "norm_op_kwargs": {"eps": eps, "affine": True},
            "nonlin": nn.LeakyReLU,
            "nonlin_kwargs": {"inplace": True},
            "deep_supervision": True,
            "n_conv_per_stage" if kind is PLAIN else "n_blocks_per_stage": blocks,
            **options,
        }
    )
    made.apply(made.initialize)
    for module in made.modules():
        if isinstance(module, norm) and module.affine:
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
        elif getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, 0, 0.3)
    return made.to(dtype)


def every_channel_twice(small: nn.Module, large: nn.Module) -> nn.Module:
    """``large``, twice as wide, filled so that it computes what ``small`` does, every channel of which it has twice."""
    weights = small.state_dict()
    filled = {}
    for name, target in large.state_dict().items():
        value = weights[name]
        transposed = ".transpconvs." in name and value.ndim > 1
        for axis in range(min(2, value.ndim)):
            repeats = target.shape[axis] // value.shape[axis]
            value = value.repeat_interleave(repeats, axis)
            if value.ndim > 1 and axis == (0 if transposed else 1):
                value = value / repeats  # sums over inputs stay what they are
        filled[name] = value
    large.load_state_dict(filled)
    return large


def images(
    count: int = 3, dimensions: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (8, 16, 16) if dimensions == 3 else (32, 32)
    return [torch.randn(1, 2, *size, generator=generator, dtype=dtype) for _ in range(count)]


def largest_difference(one: nn.Module, other: nn.Module, dimensions: int = 3) -> float:
    """Of the logits at every scale, over the largest logit of the scale, on images that nothing was fitted to."""
    dtype = next(one.parameters()).dtype
    with torch.no_grad():
        pairs = zip(
            *(net(torch.cat(images(2, dimensions, dtype, seed=9)).contiguous()) for net in (one, other)), strict=True
        )
        return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
