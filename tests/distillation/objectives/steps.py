"""A small training step with known contents, in float64, for the tests of objectives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nnunet_kd.distillation.frozen_teacher import FrozenTeacher
from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.objectives.base import NetworkPair, Objective, StepOutputs
from nnunet_kd.distillation.targets import Targets

SHAPE, HALF, HEADS = (6, 7, 5), (3, 4, 3), 3
NETWORKS = NetworkPair((4, 6), (2, 3), dimensions=3, image_channels=1, heads=HEADS)


class TinyNetwork(nn.Module):
    """An encoder of two stages and a decoder, as nnU-Net's networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TinyEncoder()
        self.decoder = TinyDecoder()


class TinyEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.second = nn.Conv3d(4, 6, 3, stride=2, padding=1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        fine = torch.tanh(self.first(image))
        return [fine, torch.tanh(self.second(fine))]


class TinyDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv3d(10, HEADS, 1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        fine, coarse = stages
        return self.last(torch.cat([fine, nn.functional.interpolate(coarse, fine.shape[2:])], 1))


def tiny_teacher() -> FrozenTeacher:
    torch.manual_seed(11)
    return FrozenTeacher(TinyNetwork(), (4, 6), torch.device("cpu"))


def make_step(seed: int = 0, **changes: Any) -> StepOutputs:
    """Random features and logits of two images; the teacher's are those of :func:`tiny_teacher`."""
    random = torch.Generator().manual_seed(seed)
    teacher = tiny_teacher()
    image = torch.randn(2, 1, *SHAPE, generator=random)
    features, logits = teacher.outputs(image)
    classes = torch.randint(0, HEADS, (2, *SHAPE), generator=random)
    student = [torch.randn(2, c, *s, generator=random, dtype=torch.float64) for c, s in ((2, SHAPE), (3, HALF))]
    step = StepOutputs(
        image=image,
        student_features=student,
        student_logits=torch.randn(2, HEADS, *SHAPE, generator=random, dtype=torch.float64),
        teacher_features=[feature.double() for feature in features],
        teacher_logits=logits.double(),
        targets=Targets(classes, None, HEADS),
        teacher=teacher,
        task_loss=lambda own: nn.functional.cross_entropy(own, classes),
        epoch=0,
        iteration=0,
        seed=3,
    )
    return replace(step, **changes)


def make(name: str, networks: NetworkPair = NETWORKS, **settings: Any) -> Objective:
    """An objective in float64 with seeded parameters."""
    torch.manual_seed(5)
    kind = OBJECTIVES[name]
    return kind(kind.Settings(**settings), networks).double()


def identical_networks() -> tuple[NetworkPair, StepOutputs]:
    """A student with the teacher's own channels that agrees with it."""
    step = make_step()
    step = replace(
        step,
        student_features=[feature.clone() for feature in step.teacher_features],
        student_logits=step.teacher_logits.clone(),
    )
    return NetworkPair((4, 6), (4, 6), 3, 1, HEADS), step


def set_identity(objective: Objective) -> None:
    """Make every projection the identity."""
    for projection in objective.projections:
        with torch.no_grad():
            projection.weight.copy_(torch.eye(len(projection.weight)))


def total(objective: Objective, step: StepOutputs) -> torch.Tensor:
    return torch.stack(list(objective(step).values())).sum()


def check_gradients(objective: Objective, step: StepOutputs) -> None:
    """Finite differences, with respect to student features and logits together."""
    leaves = [value.clone().requires_grad_() for value in (*step.student_features, step.student_logits)]
    reached = torch.autograd.grad(
        total(objective, replace(step, student_features=leaves[:-1], student_logits=leaves[-1])),
        leaves,
        allow_unused=True,
    )
    used = [leaf for leaf, gradient in zip(leaves, reached, strict=True) if gradient is not None]
    assert used

    def loss(*values: torch.Tensor) -> torch.Tensor:
        places = {id(leaf): value for leaf, value in zip(used, values, strict=True)}
        *features, logits = [places.get(id(leaf), leaf) for leaf in leaves]
        return total(objective, replace(step, student_features=features, student_logits=logits))

    assert torch.autograd.gradcheck(loss, used, fast_mode=True, eps=1e-6, atol=1e-6)
