"""A teacher's probabilities as labels: cross-entropy and Dice for targets between 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class SoftLabelLoss(nn.Module):
    r"""Cross-entropy plus Dice semimetric, of logits against probabilities ``q``; for a ``q`` of 0 and 1 nnU-Net's own loss.

    ``p`` is the student's softmax, or sigmoid where channels are independent.

    Cross-entropy: :math:`-\sum_k q_k \log p_k`, averaged over voxels. Independent channels: the binary one, averaged
    over voxels and channels.

    Dice: the usual soft Dice :math:`2 \sum pq / \sum (p + q)` is not largest at ``p = q``. Wang et al. (Dice Semimetric Losses,
    2023, arXiv 2303.16296, DML1) put :math:`(p + q - |p - q|) / 2 = \min(p, q)` in the place of ``pq``. For a ``q`` of 0 and 1
    the two are the same. Subtracted: mean over channels (without the background where they are exclusive) and samples of
    :math:`(2 \sum \min(p, q) + s) / (\sum p + \sum q + s)`.

    At ``p = q`` the gradient of both is zero.

    Args:
        independent: sigmoid instead of softmax, as with nnU-Net's regions.
        batch_dice: one Dice over all samples, instead of one each.
        smooth: ``s``.
        temperature: ``T``. In the cross-entropy, logits are divided by ``T``, ``q`` becomes ``q^(1/T)`` normalised, and the
            result is multiplied by ``T^2`` (Hinton et al., 2015, Sect. 2).
        gather: with ``batch_dice`` in several processes: adds up their sums, with gradients.

    Raises:
        ValueError: a temperature that is not above zero.

    Example:
        >>> import torch
        >>> from nnunet_kd.losses import SoftLabelLoss
        >>> logits = torch.randn(1, 3, 8, 8, requires_grad=True)
        >>> loss = SoftLabelLoss()(logits, logits.detach().softmax(1))
        >>> loss.backward()
        >>> bool(logits.grad.abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        independent: bool = False,
        batch_dice: bool = False,
        smooth: float = 1e-5,
        temperature: float = 1.0,
        gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"the temperature must be above 0, got {temperature}.")
        self.independent = independent
        self.batch_dice = batch_dice
        self.smooth = smooth
        self.temperature = temperature
        self._gather = gather or (lambda sums: sums)

    def forward(
        self, logits: torch.Tensor, probabilities: torch.Tensor, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A scalar.

        Args:
            logits: ``(B, K, *spatial)``.
            probabilities: ``q``, the same shape, between 0 and 1.
            valid: ``(B, 1, *spatial)``, bool: voxels where it is false do not count; ``None``: all.

        Raises:
            ValueError: shapes that do not fit together.
        """
        if logits.shape != probabilities.shape:
            raise ValueError(
                f"logits {tuple(logits.shape)} and probabilities {tuple(probabilities.shape)} differ in shape."
            )
        return self._cross_entropy(logits, probabilities, valid) - self._dice(logits, probabilities, valid)

    def _cross_entropy(
        self, logits: torch.Tensor, probabilities: torch.Tensor, valid: torch.Tensor | None
    ) -> torch.Tensor:
        if self.independent:
            target = _sharpened_binary(probabilities, self.temperature)
            each = functional.binary_cross_entropy_with_logits(logits / self.temperature, target, reduction="none")
            # nnU-Net's own divides by the valid voxels alone, so that channels add up; without a mask it averages over them
            mean = each.mean() if valid is None else (each * valid).sum() / valid.sum().clamp(min=1e-8)
        else:
            target = _sharpened(probabilities, self.temperature)
            each = -(target * functional.log_softmax(logits / self.temperature, dim=1)).sum(1, keepdim=True)
            mean = each.mean() if valid is None else (each * valid).sum() / valid.sum().clamp(min=1)
        return self.temperature**2 * mean

    def _dice(self, logits: torch.Tensor, probabilities: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        if self.independent:
            predicted, wanted = logits.sigmoid(), probabilities
        else:
            predicted, wanted = logits.softmax(1)[:, 1:], probabilities[:, 1:]
        if valid is not None:
            predicted, wanted = predicted * valid, wanted * valid
        axes = tuple(range(2, logits.ndim))
        # at a tie the gradient of the minimum is one half, which makes that of the quotient zero
        common = torch.minimum(predicted, wanted).sum(axes)
        total = predicted.sum(axes) + wanted.sum(axes)
        if self.batch_dice:
            common, total = self._gather(common.sum(0)), self._gather(total.sum(0))
        return ((2 * common + self.smooth) / (total + self.smooth).clamp(min=1e-8)).mean()


def _sharpened(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature == 1:
        return probabilities
    raised = probabilities ** (1 / temperature)
    return raised / raised.sum(1, keepdim=True)


def _sharpened_binary(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature == 1:
        return probabilities
    inside, outside = probabilities ** (1 / temperature), (1 - probabilities) ** (1 / temperature)
    return inside / (inside + outside)


def at_scale(probabilities: torch.Tensor, size: Sequence[int], valid: torch.Tensor | None = None) -> torch.Tensor:
    """Probabilities of a coarser grid: their mean over the voxels that each coarse one covers.

    A mean keeps every class's share of the volume, so that a structure thinner than the coarse voxel is still asked for. nnU-Net
    takes the nearest voxel because a label cannot be a mean; probabilities can.

    Args:
        probabilities: ``(B, K, *spatial)``.
        size: the coarse grid's.
        valid: ``(B, 1, *spatial)``, bool: the mean is over voxels where it is true; ``None``: over all. Where a coarse voxel
            covers none of them, every channel is ``1 / K``; see :func:`valid_at_scale`.
    """
    if tuple(probabilities.shape[2:]) == tuple(size):
        return probabilities
    if valid is None:
        return _pooled(probabilities, size)
    share = _pooled(valid.to(probabilities.dtype), size)
    mean = _pooled(probabilities.where(valid, 0.0), size) / share.clamp(min=torch.finfo(share.dtype).tiny)
    return mean.where(share > 0, 1 / probabilities.shape[1])


def valid_at_scale(valid: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Whether each voxel of a coarser grid covers any that is valid, ``(B, 1, *size)``, bool.

    Args:
        valid: ``(B, 1, *spatial)``, bool.
        size: the coarse grid's.
    """
    return valid if tuple(valid.shape[2:]) == tuple(size) else _pooled(valid.float(), size) > 0


def _pooled(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    pool: Any = functional.adaptive_avg_pool2d if len(size) == 2 else functional.adaptive_avg_pool3d
    coarse: torch.Tensor = pool(values, tuple(size))
    return coarse


def with_background(foreground: torch.Tensor) -> torch.Tensor:
    """Probabilities of all classes ``(B, K, *spatial)`` from those of the foreground ``(B, K - 1, *spatial)``.

    The background has what is left to 1. Where rounding makes the foreground's sum larger, it is divided by it. If every
    foreground class is at most ``e`` away from what it was, the background is at most ``(K - 1) e`` away.
    """
    total = foreground.sum(1, keepdim=True)
    return torch.cat([(1 - total).clamp(min=0), foreground / total.clamp(min=1)], dim=1)
