"""FreeKD: points of interest in the frequency bands, found by prompts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nnunet_kd.losses.projection import ChannelProjection, projected
from nnunet_kd.losses.self_trained import SelfTrained
from nnunet_kd.losses.wavelets import dwt, idwt

WAVELET, MODE = "haar", "periodization"


class FrequencyPrompts(nn.Module):
    """Prompts of one stage: per band ``(prompts, Ct)``, a sigmoid of whose product with the band is the mask.

    They start small and random: equal ones would stay equal.
    """

    def __init__(self, channels: int, dimensions: int, prompts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(2**dimensions, prompts, channels))

    def forward(self, bands: torch.Tensor) -> torch.Tensor:
        """Bands ``(bands, B, Ct, *half)`` to masks ``(bands, B, prompts, *half)`` between 0 and 1."""
        return torch.einsum("npc,nbc...->nbp...", self.weight.to(bands.dtype), bands).sigmoid()

    def masked(self, bands: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """What a decoder would see through the masks ``(B, Ct, *shape)``, and how much a band's masks overlap (scalar)."""
        masks = self(bands)
        return from_bands(masks.mean(2, keepdim=True) * bands, shape), overlap(masks)


class FreeKDLoss(nn.Module):
    """``sum over bands of mean(m |W(T) - W(phi(S))|)``, Haar bands, one level (Zhang et al., FreeKD, 2024; our 3D form).

    The mask ``m (B, 1, *half)`` is the mean of a band's prompt masks (ours). :meth:`tune` the prompts first, some hundred times;
    the student's optimizer does not touch them.

    Args:
        channels: of the teacher, ``Ct``.
        dimensions: 2 or 3.
        projection: ``phi``; ``None`` where channels agree, and the loss is then zero at agreement.
        prompts: per band.
        apart: factor of the Dice term that keeps a band's prompts apart.
        learning_rate: of the prompts (Adam).

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import FreeKDLoss
        >>> head = torch.nn.Conv2d(8, 3, 1)  # the teacher's decoder
        >>> teacher, labels = torch.randn(1, 8, 16, 16), torch.randint(0, 3, (1, 16, 16))
        >>> loss = FreeKDLoss(8, dimensions=2)
        >>> for _ in range(3):
        ...     values = loss.tune(teacher, head, lambda logits: torch.nn.functional.cross_entropy(logits, labels))
        >>> sorted(values)
        ['overlap', 'task']
        >>> loss(teacher, teacher).item()
        0.0
    """

    def __init__(
        self,
        channels: int,
        dimensions: int = 3,
        projection: ChannelProjection | None = None,
        *,
        prompts: int = 2,
        apart: float = 1.0,
        learning_rate: float = 1e-2,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.prompts = SelfTrained(FrequencyPrompts(channels, dimensions, prompts), learning_rate)
        self.apart = apart

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """A scalar, float32 or the inputs' float64.

        Args:
            student: ``(B, Cs, *spatial)``.
            teacher: ``(B, Ct, *spatial)``.

        Raises:
            ValueError: shapes that do not fit together.
        """
        return masked_difference(student, teacher, self.prompts, self.projection)

    def tune(
        self,
        teacher: torch.Tensor,
        decode: Callable[[torch.Tensor], torch.Tensor],
        task_loss: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """One step of the prompts: what the teacher's decoder needs to solve the task is to stay visible.

        Args:
            teacher: this stage's features ``(B, Ct, *spatial)``.
            decode: the frozen teacher's logits from this stage's features in their place; gradients must reach them.
            task_loss: of logits against the batch's reference.

        Returns:
            ``task`` and ``overlap``, both detached.
        """
        features = teacher.clone().float()
        return tune_prompts(
            self.prompts, [features], lambda masked: decode(masked[0]), task_loss, self.apart, [self.prompts.module]
        )


def masked_difference(
    student: torch.Tensor, teacher: torch.Tensor, prompts: nn.Module, projection: ChannelProjection | None
) -> torch.Tensor:
    """See :class:`FreeKDLoss`; prompts and projection may be kept elsewhere."""
    own = projected(student, teacher, projection)
    with torch.no_grad():
        mask = prompts(stacked_bands(teacher)).mean(2, keepdim=True)
    difference = stacked_bands(own - teacher)
    loss: torch.Tensor = (mask * difference.abs()).flatten(1).mean(1).sum()
    return loss


def tune_prompts(
    trained: SelfTrained,
    features: list[torch.Tensor],
    decode: Callable[[list[torch.Tensor]], torch.Tensor],
    task_loss: Callable[[torch.Tensor], torch.Tensor],
    apart: float,
    stages: list[nn.Module],
) -> dict[str, torch.Tensor]:
    """One step of the prompts of all stages together; see :meth:`FreeKDLoss.tune`.

    Args:
        trained: holds the prompts and their optimizer.
        features: of the teacher, one ``(B, Ct_i, *spatial_i)`` per stage, float32.
        decode: logits from features in their place.
        task_loss: of logits.
        apart: factor of the overlap.
        stages: the prompts within ``trained``, as :class:`FrequencyPrompts`.
    """
    bands = [stacked_bands(feature) for feature in features]
    log: dict[str, torch.Tensor] = {}

    def loss() -> torch.Tensor:
        masked, overlaps = [], []
        for prompts, stage, feature in zip(stages, bands, features, strict=True):
            assert isinstance(prompts, FrequencyPrompts)
            seen, shared = prompts.masked(stage, tuple(feature.shape[2:]))
            masked.append(seen)
            overlaps.append(shared)
        log["task"] = task_loss(decode(masked))
        log["overlap"] = torch.stack(overlaps).mean()
        return log["task"] + apart * log["overlap"]

    trained.minimise(loss)
    return {name: value.detach() for name, value in log.items()}


def stacked_bands(features: torch.Tensor) -> torch.Tensor:
    """One level of Haar bands of ``(B, C, *spatial)`` as ``(bands, B, C, *half)``, the approximation first."""
    approximation, details = dwt(features, WAVELET, 1, MODE)
    assert isinstance(approximation, torch.Tensor)
    assert isinstance(details, dict)
    return torch.stack([approximation, *(details[name] for name in sorted(details))])


def from_bands(bands: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`stacked_bands` for features of spatial ``shape``."""
    dimensions = bands.ndim - 3
    letters = ["".join("ad"[place >> axis & 1] for axis in reversed(range(dimensions))) for place in range(len(bands))]
    details = {name: bands[place] for place, name in enumerate(letters) if place}
    return idwt([bands[0], details], WAVELET, MODE, shape)


def overlap(masks: torch.Tensor) -> torch.Tensor:
    """Mean Dice overlap ``2 sum(p q) / (sum(p^2) + sum(q^2))`` of all pairs of a band's masks ``(bands, B, prompts, *half)``.

    Zero for a single prompt.
    """
    count = masks.shape[2]
    if count == 1:
        return masks.new_zeros(())
    voxels = masks.flatten(3)
    products = torch.matmul(voxels, voxels.transpose(2, 3))
    squares = products.diagonal(dim1=2, dim2=3)
    dice = 2 * products / (squares[..., :, None] + squares[..., None, :])
    pairs = torch.triu_indices(count, count, offset=1, device=masks.device)
    return dice[..., pairs[0], pairs[1]].mean()
