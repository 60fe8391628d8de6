"""Projections between a student's and a teacher's channels, fitted before the first iteration.

``phi_i = argmin || phi_i Q(S_i) - Q(T_i) ||^2 + lambda || phi_i ||^2`` over encoder stages ``i``, with ``Q`` the linear map
behind which an objective compares (``Objective.compared``): for DCD its detail projection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nnunet_kd.distillation.features import find_encoder, plain_module
from nnunet_kd.distillation.frozen_teacher import FrozenTeacher
from nnunet_kd.distillation.objectives.base import Objective
from nnunet_kd.distillation.objectives.projection import PROJECTIONS
from nnunet_kd.distillation.starts.finite import check_teacher
from nnunet_kd.distillation.starts.observation import rows_at
from nnunet_kd.distillation.starts.regression import CentredRegression, NoSolution
from nnunet_kd.distillation.starts.steps import evaluated, exact_convolutions
from nnunet_kd.errors import TeacherError
from nnunet_kd.losses.projection import ChannelProjection

PATCHES = 8
"""A projection has so few unknowns that more say the same."""
VOXELS_PER_PATCH = 16384
RIDGE = 1e-3


def has_projections(objective: Objective) -> bool:
    """Whether an objective compares features by projections with its settings; CWD of logits does not."""
    projections = getattr(objective, PROJECTIONS, None)
    return isinstance(projections, nn.ModuleList) and len(projections) > 0


def fit_projections(
    objectives: Mapping[str, Objective],
    teacher: FrozenTeacher,
    student: nn.Module,
    patches: Sequence[torch.Tensor],
    seed: int,
) -> None:
    """Overwrite the projections of objectives by fitted ones.

    Args:
        objectives: by name, each with ``projections``, one per encoder stage.
        teacher: whose features are distilled.
        student: the network, with the weights that training starts from.
        patches: images ``(1, C, *patch size)``.
        seed: of the sampled voxels.

    Raises:
        TeacherError: the teacher's weights, or features on a patch, are not finite; projections are then as they were.
    """
    check_teacher(teacher.network)
    device = next(student.parameters()).device
    encoder = find_encoder(plain_module(student))
    generator = torch.Generator().manual_seed(seed)
    regressions: dict[tuple[str, int], CentredRegression] = {}
    with evaluated(encoder), torch.no_grad(), exact_convolutions():
        for patch in patches:
            image = patch.to(device)
            stages = zip(encoder(image), teacher.features(image), strict=True)
            for stage, (of_student, of_teacher) in enumerate(stages):
                places = torch.randperm(of_student[0, 0].numel(), generator=generator)[:VOXELS_PER_PATCH]
                for name, objective in objectives.items():
                    if (name, stage) not in regressions:
                        sizes = of_student.shape[1], of_teacher.shape[1]
                        regressions[name, stage] = CentredRegression(*sizes, samples=sizes[0], ridge=RIDGE)
                    pairs = zip(
                        objective.compared(of_student.float()), objective.compared(of_teacher.float()), strict=True
                    )
                    for ours, theirs in pairs:
                        rows = [rows_at(value[0].flatten(1), places).double() for value in (ours, theirs)]
                        regressions[name, stage].add(rows[0], rows[1], 1.0)
        fitted = {key: _solution(*key, regression) for key, regression in regressions.items()}
        for (name, stage), weight in fitted.items():
            projection = objectives[name].get_submodule(f"{PROJECTIONS}.{stage}")
            assert isinstance(projection, ChannelProjection)
            projection.weight.copy_(weight.T.to(projection.weight.dtype))


def _solution(name: str, stage: int, regression: CentredRegression) -> torch.Tensor:
    with contextlib.suppress(NoSolution):
        weight = regression.solve()
        if weight.isfinite().all():
            return weight
    raise TeacherError(
        f"the projection of {name} at encoder stage {stage} cannot be fitted: features of the student or of its teacher are not "
        f"finite on a training patch. Set objectives.{name}.projection_start=random, or take another checkpoint or teacher."
    )
