"""FGBVD-KD: bias and variance learned from low and high frequencies."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nnunet_kd.losses.blocks import block_bytes
from nnunet_kd.losses.fourier import back_to_space, butterworth, half_spectrum
from nnunet_kd.losses.projection import ChannelProjection, check_pair


class ExpectationGenerator(nn.Module):
    """The light network of FFEE: 1x1x1, depthwise 3x3x3, ReLU, 1x1x1 convolutions, ``Ct`` channels in and out.

    Args:
        channels: ``Ct``.
        hidden: channels between them; with few, as many as the student has (ours: the paper says light).
        dimensions: 2 or 3.
    """

    def __init__(self, channels: int, hidden: int, dimensions: int) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.reduce = convolution(channels, hidden, 1)
        self.mix = convolution(hidden, hidden, 3, padding=1, groups=hidden)
        self.expand = convolution(hidden, channels, 1)

    def hidden(self, features: torch.Tensor, projection: torch.Tensor | None) -> torch.Tensor:
        """All but the last convolution, of ``projection (Ct, Cs)`` applied to ``features (B, Cs, *spatial)``.

        Returns:
            ``(B, hidden, *spatial)``.
        """
        reduced = _pointwise(self.reduce, features.flatten(2), after=projection)
        return functional.relu(self.mix(reduced.unflatten(2, features.shape[2:])))

    def expected(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last convolution, of voxels ``(B, hidden, voxels)``, to ``(B, Ct, voxels)``."""
        return _pointwise(self.expand, hidden)


def _pointwise(
    convolution: nn.Conv2d | nn.Conv3d, voxels: torch.Tensor, after: torch.Tensor | None = None
) -> torch.Tensor:
    """A 1x1(x1) convolution of ``(B, C, voxels)``, ``after`` a matrix: multiplied with it, so that nothing is between."""
    assert convolution.bias is not None
    matrix = convolution.weight.flatten(1)
    return torch.matmul(matrix if after is None else matrix @ after, voxels) + convolution.bias[:, None]


def low_band(features: torch.Tensor, cutoff: float, order: int) -> torch.Tensor:
    """FID's low frequencies of ``(B, C, *spatial)``, without gradient; what is missing to the features are the high ones."""
    shape = tuple(features.shape[2:])
    gain = butterworth(shape, cutoff, order, features.device, features.dtype)
    low = torch.empty_like(features, memory_format=torch.contiguous_format)
    block = max(1, block_bytes(features.device) // (features[:, 0].numel() * features.element_size()))
    with torch.no_grad():
        for some, of_features in zip(low.split(block, 1), features.split(block, 1), strict=True):
            some.copy_(back_to_space(half_spectrum(of_features).mul_(gain), shape))
    return low


class BiasAndVariance(nn.Module):
    """The two terms of :class:`FGBVDLoss`, with a generator and a projection that are kept elsewhere; learns nothing."""

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 1.0,
        cutoff: float = 0.25,
        order: int = 4,
        dropped: float = 0.5,
        divergence: Literal["mse", "kl"] = "mse",
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.cutoff, self.order = alpha, beta, cutoff, order
        self.dropped, self.divergence = dropped, divergence

    def compare(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        generator: ExpectationGenerator,
        projection: ChannelProjection | None,
        random: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of bias and variance; arguments as of :meth:`FGBVDLoss.forward`.

        Voxels in blocks: maps with the teacher's channels are made again for backward.
        """
        check_pair(student, teacher, projection)
        student = student.to(torch.promote_types(student.dtype, torch.float32))
        teacher = teacher.to(student.dtype)
        matrix = None if projection is None else projection.weight
        hidden = generator.hidden(self._with_frequencies_hidden(student, random), matrix)
        low = low_band(teacher, self.cutoff, self.order)
        block = max(1, block_bytes(teacher.device) // (teacher.shape[:2].numel() * teacher.element_size()))
        sums = torch.zeros(2, dtype=student.dtype, device=student.device)
        # split, because a slice's gradient would be as large as the whole
        for of_teacher, of_low, *of_student in zip(
            *(one.flatten(2).split(block, 2) for one in (teacher, low, student, hidden)), strict=True
        ):
            block_sums = partial(self._block_sums, projection, generator)
            pairs = of_teacher, of_low, *of_student
            sums = sums + checkpoint(block_sums, *pairs, use_reentrant=False, preserve_rng_state=False)
        maps = teacher.numel() if self.divergence == "mse" else teacher[:, 0].numel()
        bias, variance = sums / maps
        return bias, variance

    def _block_sums(
        self,
        projection: ChannelProjection | None,
        generator: ExpectationGenerator,
        teacher: torch.Tensor,
        low: torch.Tensor,
        student: torch.Tensor,
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        """Sums of bias and variance over voxels of ``(B, channels, voxels)``."""
        expected = generator.expected(hidden)
        bias = self._divergence(low, expected)
        own = student if projection is None else projection(student)
        variance = self._divergence(teacher - low, own - expected)
        # without its gradient, which would reward variance where the bias is large (docs/reference-methods.md)
        certain = self.alpha + (1 - self.alpha) * torch.exp(-variance.detach())
        return torch.stack([(bias * certain).sum(), variance.sum()])

    def _with_frequencies_hidden(self, student: torch.Tensor, random: torch.Generator | None) -> torch.Tensor:
        spectrum = half_spectrum(student)
        shape = (len(student), 1, *spectrum.shape[2:])
        kept = torch.rand(shape, generator=random, device=student.device) >= self.dropped
        return back_to_space(spectrum * kept, tuple(student.shape[2:]))

    def _divergence(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """Per voxel and channel (mse), or per voxel (kl)."""
        if self.divergence == "mse":
            return (student - teacher).square()
        log_teacher = functional.log_softmax(teacher, dim=1)
        return (log_teacher.exp() * (log_teacher - functional.log_softmax(student, dim=1))).sum(1, keepdim=True)


class FGBVDLoss(BiasAndVariance):
    """``mean(a b + (1 - a) b exp(-v)) + beta mean(v)`` (FGBVD-KD; our reading).

    ``E`` estimates the student's expected prediction: from ``phi(S)`` with a random share of frequencies set to zero (FFEE).
    Bias ``b`` is the divergence of ``E`` from the teacher's low band, variance ``v`` that of ``phi(S) - E`` from its high
    band (FID). The same frequencies are hidden in all channels of an image, and ``exp(-v)`` weighs the bias without a gradient
    of its own (ours).

    Args:
        generator: makes ``E``; its parameters are learned with the student.
        projection: ``phi``; ``None`` where channels agree.
        alpha: share of the bias that counts whatever the variance.
        beta: factor of the variance.
        cutoff: of the low-pass, in units of the Nyquist frequency.
        order: of the low-pass (Butterworth).
        dropped: share of frequencies hidden from the expectation.
        divergence: ``mse``, or ``kl`` of the softmax over channels at every voxel.

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import ChannelProjection, ExpectationGenerator, FGBVDLoss
        >>> loss = FGBVDLoss(ExpectationGenerator(8, hidden=2, dimensions=3), ChannelProjection(2, 8))
        >>> random = torch.Generator().manual_seed(0)
        >>> loss(torch.randn(1, 2, 8, 8, 8), torch.randn(1, 8, 8, 8, 8), random).backward()
        >>> sum(parameter.grad is not None for parameter in loss.parameters())
        7
    """

    def __init__(
        self,
        generator: ExpectationGenerator,
        projection: ChannelProjection | None = None,
        *,
        alpha: float = 0.5,
        beta: float = 1.0,
        cutoff: float = 0.25,
        order: int = 4,
        dropped: float = 0.5,
        divergence: Literal["mse", "kl"] = "mse",
    ) -> None:
        super().__init__(alpha, beta, cutoff, order, dropped, divergence)
        self.generator = generator
        self.projection = projection

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, random: torch.Generator | None = None
    ) -> torch.Tensor:
        """A scalar, float32 or the inputs' float64.

        Args:
            student: ``(B, Cs, *spatial)``.
            teacher: ``(B, Ct, *spatial)``.
            random: on the features' device, chooses the hidden frequencies; default: PyTorch's own.

        Raises:
            ValueError: shapes that do not fit together.
        """
        bias, variance = self.compare(student, teacher, self.generator, self.projection, random)
        return bias + self.beta * variance
