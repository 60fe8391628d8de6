"""Intra-class feature variation distillation (IFVD)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class IFVDLoss(nn.Module):
    """Mean squared difference of teacher's and student's intra-class variation maps (Wang et al., 2020, Eq. 1 to 3).

    A class's prototype is the mean feature of its voxels in one image; a voxel's variation is the cosine similarity of its
    feature with the prototype of its own class. Maps have one channel, so nothing is projected. Labels are taken at the nearest
    voxel, the background is a class as any other (ours).

    Examples:
        >>> import torch
        >>> from nnunet_kd.losses import IFVDLoss
        >>> labels = torch.randint(0, 3, (1, 16, 16))
        >>> student, teacher = torch.randn(1, 2, 8, 8, requires_grad=True), torch.randn(1, 8, 8, 8)
        >>> IFVDLoss()(student, teacher, labels).backward()
        >>> IFVDLoss()(teacher, 2 * teacher, labels).item() < 1e-12
        True
    """

    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        labels: torch.Tensor,
        valid: torch.Tensor | None = None,
        classes: int | None = None,
    ) -> torch.Tensor:
        """A scalar.

        Args:
            student: ``(B, Cs, *spatial)``.
            teacher: ``(B, Ct, *spatial)``.
            labels: ``(B, *size)``, integers from 0, at any resolution.
            valid: ``(B, 1, *size)``, bool: voxels where it is false belong to no class; ``None``: all count.
            classes: how many there are; default: one more than the largest label.
        """
        count = int(labels.max()) + 1 if classes is None else classes
        members = class_members(labels, valid, count, tuple(student.shape[2:])).to(student.device)
        belongs = members.to(torch.promote_types(student.dtype, torch.float32))
        difference = variation(student, belongs) - variation(teacher, belongs)
        return difference.square().sum() / members.sum().clamp(min=1)


def class_members(labels: torch.Tensor, valid: torch.Tensor | None, count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Which voxels belong to which class at another resolution, ``(B, K, N)``, bool; those that do not count belong to none.

    Args:
        labels, valid: see :class:`IFVDLoss`.
        count: ``K``.
        shape: spatial, of ``N`` voxels.
    """
    nearest = functional.interpolate(labels[:, None].float(), shape, mode="nearest").flatten(2)
    members = nearest == torch.arange(count, device=labels.device)[:, None]
    if valid is not None:
        members &= functional.interpolate(valid.float(), shape, mode="nearest").flatten(2) > 0
    return members


def variation(features: torch.Tensor, belongs: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of every voxel with the prototype of its class.

    Args:
        features: ``(B, C, *spatial)``.
        belongs: 1 for the class of a voxel, ``(B, K, N)``, ``N`` voxels, of the features' type or a wider one.

    Returns:
        ``(B, N)``; 0 where a voxel belongs to no class.
    """
    voxels = features.flatten(2).to(belongs.dtype)
    # the sum instead of the mean: cosine similarity does not see the difference
    prototypes = functional.normalize(torch.matmul(belongs, voxels.transpose(1, 2)), dim=2, eps=1e-8)
    similarity = torch.matmul(prototypes, functional.normalize(voxels, dim=1, eps=1e-8))
    return (similarity * belongs).sum(1)
