"""Distillation of class probabilities (Hinton et al.)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from nnunet_kd.losses.projection import check_pair

MOST_REGIONS = 20
"""Of a mean over sets of regions: there are ``2^K`` sets, each of which has a sum."""


class LogitsLoss(nn.Module):
    """``tau^2 KL(p_t || p_s)`` per voxel, ``p = softmax(z / tau)`` (Hinton et al., 2015, Sect. 2 and 2.1).

    The factor ``tau^2`` keeps the size of the gradient as ``tau`` grows. The divergence sums over classes and is averaged over
    voxels.

    Args:
        temperature: ``tau``; larger values soften both distributions.
        independent: every channel is a Bernoulli variable of its own (sigmoid), as with nnU-Net's regions; theirs are summed.
        balance: ``voxels``: averaged over voxels. ``classes`` (ours): averaged within each class that the teacher predicts, then
            over those classes, so that a small structure counts as much as the background. Regions: a voxel's class is the set of
            regions that the teacher predicts there.

    Raises:
        ValueError: a temperature that is not above zero, or an unknown ``balance``.

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import LogitsLoss
        >>> teacher, student = torch.randn(1, 3, 8, 8), torch.zeros(1, 3, 8, 8, requires_grad=True)
        >>> LogitsLoss(temperature=2)(student, teacher).backward()
        >>> LogitsLoss(independent=True)(teacher, teacher).item()
        0.0
    """

    def __init__(self, temperature: float = 2.0, independent: bool = False, balance: str = "voxels") -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"the temperature must be above 0, got {temperature}.")
        if balance not in ("voxels", "classes"):
            raise ValueError(f"balance is voxels or classes, got {balance!r}.")
        self.temperature = temperature
        self.independent = independent
        self.balance = balance

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """A scalar.

        Args:
            student: logits ``(B, K, *spatial)``.
            teacher: likewise.
            valid: ``(B, 1, *spatial)``, bool: voxels where it is false do not count; ``None``: all.

        Raises:
            ValueError: shapes that do not fit together, or more regions than ``balance: classes`` takes.
        """
        check_pair(student, teacher, None)
        predicted = _predicted(teacher, self.independent) if self.balance == "classes" else None
        student, teacher = student / self.temperature, teacher / self.temperature
        divergence = _bernoulli(teacher, student) if self.independent else _categorical(teacher, student)
        if predicted is not None:
            return self.temperature**2 * _mean_by_class(divergence, *predicted, valid)
        if valid is None:
            return self.temperature**2 * divergence.mean()
        return self.temperature**2 * divergence.where(valid, 0.0).sum() / valid.sum().clamp(min=1)


def _predicted(teacher: torch.Tensor, independent: bool) -> tuple[torch.Tensor, int]:
    """A number for every voxel's predicted class, or set of regions, ``(B, 1, *spatial)``, int64; and how many there can be."""
    channels = teacher.shape[1]
    if not independent:
        return teacher.argmax(1, keepdim=True), channels
    if channels > MOST_REGIONS:
        raise ValueError(f"balance by classes takes up to {MOST_REGIONS} regions, got {channels}; use balance voxels.")
    places = 2 ** torch.arange(channels, device=teacher.device).view(1, -1, *[1] * (teacher.ndim - 2))
    return ((teacher > 0) * places).sum(1, keepdim=True), 2**channels


def _mean_by_class(values: torch.Tensor, classes: torch.Tensor, count: int, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean of ``values`` within each of ``count`` classes that occurs, then over these. Python waits for no number of a GPU."""
    exact = torch.float32 if values.device.type == "mps" else torch.float64  # float32 counts ones up to 2^24
    counted = torch.ones_like(classes) if valid is None else valid.long()
    kept = (values if valid is None else values.where(valid, 0.0)).flatten().to(exact)
    sums = kept.new_zeros(count).index_add(0, classes.flatten(), kept)
    voxels = classes.new_zeros(count).index_add(0, classes.flatten(), counted.flatten())
    return ((sums / voxels.clamp(min=1)).sum() / (voxels > 0).sum().clamp(min=1)).to(values.dtype)


def _categorical(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """``KL(softmax(teacher) || softmax(student))`` over channels, ``(B, 1, *spatial)``."""
    log_teacher = functional.log_softmax(teacher, dim=1)
    difference = log_teacher - functional.log_softmax(student, dim=1)
    return (log_teacher.exp() * difference).sum(1, keepdim=True)


def _bernoulli(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """``KL`` of one Bernoulli variable per channel, summed over channels, ``(B, 1, *spatial)``."""
    inside = functional.logsigmoid(teacher)
    outside = functional.logsigmoid(-teacher)
    divergence = inside.exp() * (inside - functional.logsigmoid(student))
    divergence = divergence + outside.exp() * (outside - functional.logsigmoid(-student))
    return divergence.sum(1, keepdim=True)
