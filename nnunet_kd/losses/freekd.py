"""FreeKD: points of interest in the frequency bands, found by prompts.

As its authors released it (github.com/Gumpest/FreeKD), which differs from the paper's text, in 2D and 3D. The paper's
position-aware relational term is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import nn

from nnunet_kd.losses.projection import ChannelProjection, projected
from nnunet_kd.losses.self_trained import SelfTrained
from nnunet_kd.losses.wavelets import Coefficients, dwt, idwt

WAVELET, MODE = "haar", "zero"


class FrequencyPrompts(nn.Module):
    """Prompts of one stage ``(levels + 1, prompts, Ct)``: the approximation's, then those of each level, the coarsest first.

    They start small and random: equal ones would stay equal.
    """

    def __init__(self, channels: int, prompts: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.weight = nn.Parameter(0.01 * torch.randn(levels + 1, prompts, channels))

    def forward(self, place: int, bands: torch.Tensor) -> torch.Tensor:
        """Masks ``(B, prompts, *size)`` between 0 and 1, shared by a level's orientations: sigmoid of prompt times their sum.

        Args:
            place: 0: the approximation, then the levels of details, the coarsest first.
            bands: there, ``(orientations, B, Ct, *size)``.
        """
        return torch.einsum("pc,bc...->bp...", self.weight[place].to(bands.dtype), bands.sum(0)).sigmoid()

    def masked(self, levels: list[torch.Tensor], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """What a decoder would see through the masks ``(B, Ct, *shape)``, and how much they overlap (scalar).

        Args:
            levels: from :func:`bands_by_level`.
            shape: the features' spatial one.
        """
        masks = [self(place, bands) for place, bands in enumerate(levels)]
        seen = [mask.sum(1)[None, :, None] * bands for mask, bands in zip(masks, levels, strict=True)]
        return from_levels(seen, shape), torch.stack([overlap(mask) for mask in masks]).sum()


class FreeKDLoss(nn.Module):
    """``sum over levels of mean(m |W(T) - W(phi(S))|)``, Haar details, zero padding (FreeKD, 2024, as released).

    The mask ``m (B, 1, *size)`` of a level is the mean of its prompts' masks: the mean absolute difference of what each prompt
    lets through. The approximation is left out. :meth:`tune` the prompts first, some hundred times; the student's optimizer
    does not touch them.

    Args:
        channels: of the teacher, ``Ct``.
        projection: ``phi``; ``None`` where channels agree, and the loss is then zero at agreement.
        prompts: for the approximation and for every level.
        levels: of the transform.
        apart: factor of the Dice term that keeps a level's prompts apart.
        learning_rate: of the prompts (Adam).

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import FreeKDLoss
        >>> head = torch.nn.Conv2d(8, 3, 1)  # the teacher's decoder
        >>> teacher, labels = torch.randn(1, 8, 16, 16), torch.randint(0, 3, (1, 16, 16))
        >>> loss = FreeKDLoss(8)
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
        projection: ChannelProjection | None = None,
        *,
        prompts: int = 2,
        levels: int = 3,
        apart: float = 1.0,
        learning_rate: float = 1e-2,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.prompts = SelfTrained(FrequencyPrompts(channels, prompts, levels), learning_rate)
        self.apart = apart

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """A scalar, float32 or the inputs' float64.

        Args:
            student: ``(B, Cs, *spatial)``.
            teacher: ``(B, Ct, *spatial)``.

        Raises:
            ValueError: shapes that do not fit together.
        """
        return masked_difference(student, teacher, self.prompts.module, self.projection)

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
        return tune_prompts(
            self.prompts,
            [teacher.float()],
            lambda masked: decode(masked[0]),
            task_loss,
            self.apart,
            [self.prompts.module],
        )


def masked_difference(
    student: torch.Tensor, teacher: torch.Tensor, prompts: nn.Module, projection: ChannelProjection | None
) -> torch.Tensor:
    """See :class:`FreeKDLoss`; prompts (:class:`FrequencyPrompts`) and projection may be kept elsewhere."""
    assert isinstance(prompts, FrequencyPrompts)
    own = projected(student, teacher, projection)
    with torch.no_grad():
        masks = [
            prompts(place, bands).mean(1)[None, :, None]
            for place, bands in enumerate(bands_by_level(teacher, prompts.levels))
            if place
        ]
    _, *differences = bands_by_level(own - teacher, prompts.levels)
    terms = [(mask * bands.abs()).mean() for mask, bands in zip(masks, differences, strict=True)]
    return torch.stack(terms).sum()


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
    transformed = []
    for prompts, feature in zip(stages, features, strict=True):
        assert isinstance(prompts, FrequencyPrompts)
        transformed.append(bands_by_level(feature, prompts.levels))
    log: dict[str, torch.Tensor] = {}

    def loss() -> torch.Tensor:
        masked, overlaps = [], []
        for prompts, bands, feature in zip(stages, transformed, features, strict=True):
            assert isinstance(prompts, FrequencyPrompts)
            seen, shared = prompts.masked(bands, tuple(feature.shape[2:]))
            masked.append(seen)
            overlaps.append(shared)
        log["task"] = task_loss(decode(masked))
        log["overlap"] = torch.stack(overlaps).mean()
        return log["task"] + apart * log["overlap"]

    trained.minimise(loss)
    return {name: value.detach() for name, value in log.items()}


def bands_by_level(features: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """Haar bands of ``(B, C, *spatial)``: the approximation, then the details of each level, the coarsest first.

    Returns:
        Of each ``(orientations, B, C, *size)``, the orientations in the order of their letters.
    """
    approximation, *details = dwt(features, WAVELET, levels, MODE)
    assert isinstance(approximation, torch.Tensor)
    stacked = [approximation[None]]
    for bands in details:
        assert isinstance(bands, dict)
        stacked.append(torch.stack([bands[name] for name in sorted(bands)]))
    return stacked


def from_levels(levels: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`bands_by_level` for features of spatial ``shape``."""
    names = ["".join(letters) for letters in product("ad", repeat=len(shape))][1:]
    coefficients: Coefficients = [levels[0][0]]
    coefficients += [dict(zip(names, bands, strict=True)) for bands in levels[1:]]
    return idwt(coefficients, WAVELET, MODE, shape)


def overlap(masks: torch.Tensor) -> torch.Tensor:
    """Mean Dice overlap ``2 sum(p q) / (sum(p^2) + sum(q^2))`` of all pairs of masks ``(B, prompts, *size)`` of an image.

    Zero for a single prompt.
    """
    count = masks.shape[1]
    if count == 1:
        return masks.new_zeros(())
    voxels = masks.flatten(2)
    products = torch.matmul(voxels, voxels.transpose(1, 2))
    squares = products.diagonal(dim1=1, dim2=2)
    dice = 2 * products / (squares[..., :, None] + squares[..., None, :])
    pairs = torch.triu_indices(count, count, offset=1, device=masks.device)
    return dice[..., pairs[0], pairs[1]].mean()
