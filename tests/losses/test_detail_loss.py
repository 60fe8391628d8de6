"""The fused stage loss against slow forms, limits and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch

from nnunet_kd.losses import detail_loss as module
from nnunet_kd.losses.detail_loss import detail_loss
from nnunet_kd.losses.wavelets import detail_projection, dwt, idwt
from nnunet_kd.workflows.bench import ptwt_reference


def inputs(
    *spatial: int, batch: int = 2, teacher: int = 6, student: int = 3, dtype: torch.dtype = torch.float64
) -> tuple:
    generator = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    return make(batch, teacher, *spatial), make(batch, student, *spatial), make(teacher, student)


def plain_loss(teacher: torch.Tensor, student: torch.Tensor, weight: torch.Tensor, **transform: object) -> torch.Tensor:
    """Eq. 7 literally: project the student, keep both sides' details, mean square."""
    projected = torch.einsum("ts,bs...->bt...", weight, student)
    return (detail_projection(teacher, **transform) - detail_projection(projected, **transform)).square().mean()


def test_literal_value() -> None:
    """One haar level of a 2x2x2 cube: six directional coefficients, worked out by hand.

    The cube is 1 in one corner and 0 elsewhere, so every coefficient is +-8**-0.5 and each band holds one; the six bands of
    D have energy 6/8 in all, over 8 voxels.
    """
    teacher = torch.zeros(1, 1, 2, 2, 2)
    teacher[0, 0, 0, 0, 0] = 1
    loss = detail_loss(teacher, torch.zeros_like(teacher), torch.ones(1, 1), wavelet="haar", levels=1)
    assert loss.item() == pytest.approx(6 / 8 / 8, rel=1e-6)


@pytest.mark.parametrize("mode", ["periodization", "zero", "symmetric", "periodic", "constant"])
@pytest.mark.parametrize("spatial", [(16, 8, 8), (13, 9, 10), (5, 7, 5), (17, 20), (3, 2)])
def test_equals_the_plain_form_with_its_gradients(spatial: tuple[int, ...], mode: str) -> None:
    teacher, student, weight = inputs(*spatial)
    student.requires_grad_()
    weight.requires_grad_()
    fused, plain = (form(teacher, student, weight, mode=mode) for form in (detail_loss, plain_loss))
    torch.testing.assert_close(fused, plain, atol=0, rtol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(fused, (student, weight)), torch.autograd.grad(plain, (student, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_equals_ptwt_in_float32() -> None:
    teacher, student, weight = inputs(20, 28, 20, teacher=8, student=2, dtype=torch.float32)
    student.requires_grad_()
    weight.requires_grad_()
    ours, theirs = (
        detail_loss(teacher, student, weight, mode="zero"),
        ptwt_reference.detail_loss(teacher, student, weight),
    )
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, (student, weight)), torch.autograd.grad(theirs, (student, weight)), strict=True
    ):
        assert ((a - b).norm() / b.norm()).item() < 1e-5


def test_equals_a_loop_over_pywavelets() -> None:
    teacher, student, weight = inputs(6, 5, 4, batch=1, teacher=2, student=1)
    total = 0.0
    for channel in range(2):
        difference = (teacher[0, channel] - weight[channel, 0] * student[0, 0]).numpy()
        bands = pywt.dwtn(difference, "db4", mode="periodization")
        bands["aaa"][:] = 0
        bands["ddd"][:] = 0
        detail = pywt.idwtn(bands, "db4", mode="periodization")[:6, :5, :4]
        total += float(np.square(detail).sum())
    loss = detail_loss(teacher, student, weight, levels=1)
    assert loss.item() == pytest.approx(total / (2 * 6 * 5 * 4), rel=1e-10)


@pytest.mark.parametrize("options", [{}, {"per_level": True}, {"inverse": False}, {"bands": "S"}, {"bands": "all"}])
@pytest.mark.parametrize(
    ("spatial", "mode"), [((8, 4, 4), "periodization"), ((5, 4, 3), "symmetric"), ((6, 5), "zero")]
)
def test_gradients_by_finite_differences(spatial: tuple[int, ...], mode: str, options: dict) -> None:
    teacher, student, weight = inputs(*spatial, batch=1, teacher=3, student=2)
    student.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, w: detail_loss(teacher, s, w, mode=mode, levels=2, **options), (student, weight)
    )


def test_zero_where_student_and_teacher_agree() -> None:
    teacher, _, _ = inputs(9, 8, 7)
    assert detail_loss(teacher, teacher, torch.eye(6, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("family", ["A", "S"])
@pytest.mark.parametrize("spatial", [(16, 8, 8), (16, 24)])
def test_blind_to_changes_within_the_families_left_out(spatial: tuple[int, ...], family: str) -> None:
    teacher, student, weight = inputs(*spatial)
    coefficients = dwt(torch.zeros_like(teacher))
    targets = [coefficients[0]] if family == "A" else [level["d" * len(spatial)] for level in coefficients[1:]]  # type: ignore[index]
    for band in targets:
        band.copy_(100 * torch.randn_like(band))
    change = idwt(coefficients)
    assert change.norm() > 100
    before, after = detail_loss(teacher, student, weight), detail_loss(teacher + change, student, weight)
    torch.testing.assert_close(after, before, atol=0, rtol=1e-9)


def mean_square_of_coefficients(difference: torch.Tensor, bands: str, mode: str, per_level: bool) -> torch.Tensor:
    """The paper's ablation without the inverse transform, from all coefficients that a transform returns."""
    approximation, *details = dwt(difference, mode=mode)
    everything = "d" * (difference.ndim - 2)
    groups = [[approximation.flatten()]] if bands in ("A", "all") else []  # type: ignore[union-attr]
    for level in details if bands != "A" else []:
        assert isinstance(level, dict)
        chosen = {"S": [everything], "D": set(level) - {everything}, "all": set(level)}[bands]
        groups.append([level[name].flatten() for name in sorted(chosen)])
    if not per_level:
        groups = [[band for group in groups for band in group]]
    return torch.stack([torch.cat(group).square().mean() for group in groups]).mean()


@pytest.mark.parametrize("options", [{}, {"per_level": True}, {"bands": "S"}, {"bands": "A"}, {"bands": "all"}])
@pytest.mark.parametrize("spatial", [(16, 24, 8), (16, 8), (5, 7, 5), (12, 8, 10)])
@pytest.mark.parametrize("mode", ["periodization", "zero"])
def test_without_the_inverse_transform(spatial: tuple[int, ...], mode: str, options: dict) -> None:
    """Also where the transform is orthonormal, and the loss with the inverse answers for the one without."""
    teacher, student, weight = inputs(*spatial)
    student.requires_grad_()
    weight.requires_grad_()
    ours = detail_loss(teacher, student, weight, mode=mode, inverse=False, **options)
    difference = teacher - torch.einsum("ts,bs...->bt...", weight, student)
    plain = mean_square_of_coefficients(difference, options.get("bands", "D"), mode, options.get("per_level", False))
    torch.testing.assert_close(ours, plain, atol=0, rtol=1e-10)
    for a, b in zip(
        torch.autograd.grad(ours, (student, weight)), torch.autograd.grad(plain, (student, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_levels_share_the_joint_loss_where_orthonormal() -> None:
    teacher, student, weight = inputs(16, 8, 24)
    joint, per_level = (detail_loss(teacher, student, weight, per_level=per_level) for per_level in (False, True))
    torch.testing.assert_close(3 * per_level, joint, atol=0, rtol=1e-10)


@pytest.mark.parametrize("mode", ["periodization", "zero"])
def test_value_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    teacher, student, weight = inputs(8, 8, 8, teacher=7)
    student.requires_grad_()
    whole = torch.autograd.grad(detail_loss(teacher, student, weight, mode=mode), student)[0]
    monkeypatch.setattr(module, "block_bytes", lambda device: 1)
    monkeypatch.setattr(module, "_SMALLEST_BLOCK", 3)
    blocks = torch.autograd.grad(detail_loss(teacher, student, weight, mode=mode), student)[0]
    torch.testing.assert_close(blocks, whole, atol=1e-15, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_under_autocast(dtype: torch.dtype) -> None:
    teacher, student, weight = inputs(8, 8, 8, dtype=torch.float32)
    teacher, student = teacher.to(dtype), student.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = detail_loss(teacher, student, weight)
    (gradient,) = torch.autograd.grad(loss, student)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, detail_loss(teacher.float(), student.float(), weight))


def test_inference_tensors_of_a_teacher_are_accepted() -> None:
    _, student, weight = inputs(8, 8, 8)
    with torch.inference_mode():
        teacher = torch.randn(2, 6, 8, 8, 8, dtype=torch.float64)
    student.requires_grad_()
    detail_loss(teacher, student, weight).backward()
    assert student.grad is not None


def test_only_what_needs_a_gradient_gets_one() -> None:
    teacher, student, weight = inputs(8, 8, 8)
    teacher.requires_grad_()
    weight.requires_grad_()
    detail_loss(teacher, student, weight).backward()
    assert teacher.grad is None
    assert weight.grad is not None


def test_shapes_that_do_not_fit_are_refused() -> None:
    teacher, student, weight = inputs(8, 8, 8)
    with pytest.raises(ValueError, match="differ in batch or spatial size"):
        detail_loss(teacher, student[:, :, :4], weight)
    with pytest.raises(ValueError, match="projection must be"):
        detail_loss(teacher, student, weight.T)
    with pytest.raises(ValueError, match="per_level"):
        detail_loss(teacher, student, weight, per_level=True, bands="A")
    with pytest.raises(ValueError, match="wavelet"):
        detail_loss(teacher, student, weight, inverse=False, wavelet="nosuch")
