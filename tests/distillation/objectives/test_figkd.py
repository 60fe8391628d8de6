"""FiGKD against PyWavelets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import pywt
import torch
from pydantic import ValidationError

from nnunet_kd.distillation.objectives.base import NetworkPair
from nnunet_kd.distillation.targets import Targets
from tests.distillation.objectives.steps import (
    HEADS,
    SHAPE,
    check_gradients,
    identical_networks,
    make,
    make_step,
    total,
)


@pytest.mark.parametrize(("wavelet", "levels"), [("db4", 1), ("haar", 2), ("sym4", 3)])
def test_equals_pywavelets_band_by_band(wavelet: str, levels: int) -> None:
    step = make_step()
    terms = make("figkd", wavelet=wavelet, levels=levels)(step)
    decompositions = [
        pywt.wavedecn(logits.numpy(), wavelet, "periodization", levels, axes=(2, 3, 4))
        for logits in (step.student_logits, step.teacher_logits)
    ]
    expected = {}
    for place, (student, teacher) in enumerate(zip(*(d[1:] for d in decompositions), strict=True)):
        for name in student:
            expected[f"level{levels - place}_{name}"] = np.abs(student[name] - teacher[name]).mean()
    assert terms.keys() == expected.keys()
    assert len(terms) == 7 * levels
    assert all(terms[name].item() == pytest.approx(value, rel=1e-9) for name, value in expected.items())


@pytest.mark.parametrize("heads", [2, 3])
def test_over_classes_equals_pywavelets_voxel_by_voxel(heads: int) -> None:
    step = make_step()
    step = replace(step, student_logits=step.student_logits[:, :heads], teacher_logits=step.teacher_logits[:, :heads])
    values = []
    for image, *place in np.ndindex(2, *SHAPE):
        vectors = [z[(image, slice(None), *place)].numpy() for z in (step.student_logits, step.teacher_logits)]
        student, teacher = (pywt.dwt(np.pad(v, (0, heads % 2)), "haar", "periodization")[1] for v in vectors)
        values.append(np.abs(student - teacher))
    objective = make("figkd", NetworkPair((4, 6), (2, 3), 3, 1, heads), axis="class")
    assert total(objective, step).item() == pytest.approx(np.mean(values), rel=1e-6)


def test_gradients() -> None:
    check_gradients(make("figkd"), make_step())
    check_gradients(make("figkd", axis="class"), make_step())


def test_blind_to_a_constant_added_to_the_logits() -> None:
    step = make_step()
    shifted = replace(step, student_logits=step.student_logits + torch.tensor([3.0, -1, 7]).view(1, 3, 1, 1, 1))
    for settings in ({"levels": 1}, {"levels": 2, "wavelet": "haar"}):
        objective = make("figkd", **settings)
        assert total(objective, shifted).item() == pytest.approx(total(objective, step).item(), rel=1e-9)
    even = NetworkPair((4, 6), (2, 3), 3, 1, 2)
    two = replace(step, student_logits=step.student_logits[:, :2], teacher_logits=step.teacher_logits[:, :2])
    objective = make("figkd", even, axis="class")
    assert total(objective, replace(two, student_logits=two.student_logits + 5)).item() == pytest.approx(
        total(objective, two).item(), rel=1e-9
    )


def test_zero_where_the_two_agree_or_everything_is_ignored() -> None:
    _, step = identical_networks()
    assert total(make("figkd"), step).item() == 0
    nothing = Targets(step.targets.classes, torch.zeros(2, 1, *SHAPE, dtype=torch.bool), HEADS)
    assert total(make("figkd"), replace(make_step(), targets=nothing)).item() == 0


def test_an_unknown_wavelet_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a discrete wavelet"):
        make("figkd", wavelet="db99")


def test_the_mean_is_over_the_voxels_that_count() -> None:
    step = make_step()
    half = torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    half[:, :, :2] = True
    masked = replace(step, targets=Targets(step.targets.classes, half, HEADS))
    z = {"student_logits": step.student_logits, "teacher_logits": step.teacher_logits}
    alone = replace(step, **{name: value[:, :, :2] for name, value in z.items()})
    over_classes = make("figkd", axis="class")
    assert total(over_classes, masked).item() == pytest.approx(total(over_classes, alone).item(), rel=1e-6)
    # over space the edge of what is ignored is a detail, too
    all_of_it, a_part = (total(make("figkd", wavelet="haar"), one).item() for one in (alone, masked))
    assert a_part == pytest.approx(all_of_it, rel=1e-6), "an even edge, at which this wavelet looks at no other voxel"
