"""The DCD stage loss, forward and backward in one pass over small blocks.

With ``E = T - W S`` (``T`` the teacher's stage feature, ``S`` the student's, ``W`` the 1x1x1 projection ``phi``) the paper's
stage loss (Eq. 7) is ``mean((P E)^2)`` since ``P`` is linear. Three facts make it cheap:

- one projection of the difference replaces one of each side;
- the gradient with respect to ``E`` is ``2/N P^T P E``. In the orthonormal case ``P`` is its own adjoint and idempotent,
  so the gradient is the residual ``P E`` that the loss has just squared, and backward costs no transform at all;
- ``dW`` and ``dS`` are sums over blocks of channels, so neither ``E``, ``P E`` nor ``dE`` ever exists at full size. What stays
  for backward is ``dS`` (a quarter of the teacher's feature at r=4) and ``dW``. Where ``P`` is not its own adjoint, ``P`` and
  ``P^T`` commute with ``W``, so the gradient's transforms run at the student's channels instead of the teacher's.

The price is that the loss cannot be differentiated twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.axis_operators import check_transform, is_orthonormal
from nnunet_kd.losses.band_projection import BandProjection, Bands, band_projection
from nnunet_kd.losses.blocks import block_bytes
from nnunet_kd.losses.wavelets import dwt, working_dtype

_SMALLEST_BLOCK = 4
"""Channels: every block reads and writes the whole student feature, so very large volumes still share that among four."""


class _StageLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, projections: list[BandProjection]
    ) -> torch.Tensor:
        dtype = working_dtype(student, teacher, weight)
        shape = teacher.shape[2:]
        channels, voxels = teacher.shape[1], shape.numel()
        scale = 1.0 / (teacher.numel() * len(projections))
        needs_student, needs_weight = ctx.needs_input_grad[:2]
        block = min(channels, max(_SMALLEST_BLOCK, block_bytes(teacher.device) // (voxels * dtype.itemsize)))

        with torch.autocast(teacher.device.type, enabled=False):
            matrix = weight.to(dtype)
            total = torch.zeros((), dtype=dtype, device=teacher.device)
            grad_matrix = torch.zeros_like(matrix) if needs_weight else None
            grad_student = torch.zeros(student.shape, dtype=dtype, device=student.device) if needs_student else None
            memory = torch.empty(max(block, student.shape[1]), voxels, dtype=dtype, device=teacher.device)
            for projection in projections:
                workspace = projection.workspace(memory.view(-1, *shape))

                def project(rows: torch.Tensor, adjoint: bool = False) -> torch.Tensor:
                    projection.apply_(rows.view(-1, *shape), workspace, adjoint)  # noqa: B023  used within the loop
                    return rows

                for sample in range(teacher.shape[0]):
                    source = student[sample].reshape(-1, voxels).to(dtype)
                    # P^T R S^T = R (P S)^T and W^T P^T R = P^T (W^T R): the adjoint runs at the student's channels
                    seen = source if projection.orthonormal or not needs_weight else project(source.clone())
                    gradient = torch.zeros_like(source) if needs_student else None
                    for start in range(0, channels, block):
                        rows = slice(start, min(start + block, channels))
                        target = teacher[sample, rows].reshape(-1, voxels).to(dtype)
                        residual = memory[: target.shape[0]]
                        project(torch.addmm(target, matrix[rows], source, alpha=-1, out=residual))
                        total += torch.linalg.vecdot(residual, residual).sum()
                        if grad_matrix is not None:
                            grad_matrix[rows].addmm_(residual, seen.T, alpha=-2 * scale)
                        if gradient is not None:
                            gradient.addmm_(matrix[rows].T, residual)
                    if grad_student is not None and gradient is not None:
                        if not projection.orthonormal:
                            project(gradient, adjoint=True)
                        grad_student[sample].view(-1, voxels).add_(gradient, alpha=-2 * scale)
        ctx.save_for_backward(grad_student, grad_matrix)
        ctx.dtypes = student.dtype, weight.dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = (
            None if saved is None else (saved * grad_loss).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None)


def detail_loss(
    teacher: torch.Tensor,
    student: torch.Tensor,
    weight: torch.Tensor,
    *,
    wavelet: str = "db4",
    levels: int = 3,
    mode: str = "periodization",
    bands: Bands = "D",
    per_level: bool = False,
    inverse: bool = True,
) -> torch.Tensor:
    """``mean((P(T) - P(phi(S)))^2)`` of one encoder stage (DCD paper, Eq. 7).

    Args:
        teacher: ``(B, Ct, *spatial)``, two or three spatial axes; receives no gradient.
        student: ``(B, Cs, *spatial)``.
        weight: ``(Ct, Cs)``, the matrix of the bias-free 1x1x1 convolution ``phi``.
        wavelet, levels, mode, bands: see :func:`nnunet_kd.losses.wavelets.detail_projection`.
        per_level: take the loss of every level's bands apart and average over the levels, as the recipes that
            accompany the paper do, instead of one loss over all levels' bands together.
        inverse: ``False`` skips the inverse transform and averages the squared coefficients of the kept bands
            (the paper's ablation "w/o IDWT").

    Returns:
        A scalar, float32 (float64 if an input is). Differentiable once, in ``student`` and ``weight``.

    Raises:
        ValueError: shapes that do not fit together; see also :func:`nnunet_kd.losses.wavelets.dwt`.

    Examples:
        >>> teacher, weight = torch.randn(1, 4, 8, 8, 8), torch.eye(4)
        >>> detail_loss(teacher, teacher, weight).item()
        0.0
    """
    if teacher.shape[0] != student.shape[0] or teacher.shape[2:] != student.shape[2:]:
        raise ValueError(
            f"teacher {tuple(teacher.shape)} and student {tuple(student.shape)} differ in batch or spatial size."
        )
    if tuple(weight.shape) != (teacher.shape[1], student.shape[1]):
        raise ValueError(
            f"the projection must be {(teacher.shape[1], student.shape[1])} (teacher by student channels), "
            f"got {tuple(weight.shape)}."
        )
    if per_level and bands not in ("D", "S"):
        raise ValueError(f"only the bands D and S exist at every level; per_level cannot go with {bands!r}.")
    if not inverse:
        check_transform(wavelet, levels, mode)
        if per_level or not is_orthonormal(tuple(teacher.shape[2:]), wavelet, levels, mode):
            return _coefficient_loss(teacher, student, weight, wavelet, levels, mode, bands, per_level)
        # Parseval: coefficients have the energy of what they reconstruct, and only the number divided by differs
        with_inverse = detail_loss(teacher, student, weight, wavelet=wavelet, levels=levels, mode=mode, bands=bands)
        return with_inverse / _share_of_coefficients(bands, levels, teacher.ndim - 2)
    dtype = working_dtype(student, teacher, weight)
    chosen = range(1, levels + 1) if per_level else [None]
    projections = [
        band_projection(tuple(teacher.shape[2:]), wavelet, levels, mode, bands, level, teacher.device, dtype)
        for level in chosen
    ]
    result: torch.Tensor = _StageLoss.apply(student, weight, teacher.detach(), projections)
    return result


def _share_of_coefficients(bands: Bands, levels: int, dims: int) -> float:
    """How many of an orthonormal transform's coefficients belong to ``bands``."""
    approximation = 2.0 ** (-dims * levels)
    high_along_every_axis = sum(2.0 ** (-dims * level) for level in range(1, levels + 1))
    shares = {
        "A": approximation,
        "S": high_along_every_axis,
        "D": 1 - approximation - high_along_every_axis,
        "all": 1.0,
    }
    return shares[bands]


def _coefficient_loss(
    teacher: torch.Tensor,
    student: torch.Tensor,
    weight: torch.Tensor,
    wavelet: str,
    levels: int,
    mode: str,
    bands: Bands,
    per_level: bool,
) -> torch.Tensor:
    """Mean square over the kept coefficients, through the transform itself, by plain autograd.

    For an ablation, and there only for sizes at which the transform is not orthonormal: coarse stages, mostly.
    """
    dtype = working_dtype(student, teacher, weight)
    dims = teacher.ndim - 2
    with torch.autocast(teacher.device.type, enabled=False):
        projected = torch.einsum("ts,bs...->bt...", weight.to(dtype), student.to(dtype))
        approximation, *details = dwt(teacher.detach().to(dtype) - projected, wavelet, levels, mode)
        groups = [
            [
                band
                for name, band in level.items()  # type: ignore[union-attr]
                if bands == "all" or (bands == "S") == (name == "d" * dims)
            ]
            for level in (details if bands != "A" else [])
        ]
        if bands in ("A", "all"):
            groups.append([approximation])
        if not per_level:
            groups = [[band for group in groups for band in group]]
        losses = [
            torch.stack([band.square().sum() for band in group]).sum() / sum(band.numel() for band in group)
            for group in groups
        ]
    return torch.stack(losses).mean()
