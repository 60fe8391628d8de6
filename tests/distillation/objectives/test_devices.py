"""Every objective on a GPU that is not there: PyTorch's fake tensors know devices and types, and refuse to mix them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_kd.distillation.frozen_teacher import FrozenTeacher, Teachers
from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.objectives.base import Objective, ObjectiveSettings, StepOutputs
from nnunet_kd.distillation.targets import read_targets
from nnunet_kd.distillation.weighting import Distillation
from nnunet_kd.losses.band_projection import band_projection
from nnunet_kd.losses.figkd import _class_details
from nnunet_kd.losses.fourier import butterworth
from nnunet_kd.losses.wavelets import _level_matrices
from tests.distillation.objectives.steps import HALF, HEADS, NETWORKS, SHAPE, TinyNetwork, make_step

DEVICE = torch.device("cuda", 0)
READ_LOGITS = ("cwd", "logits", "figkd", "ifvd", "soft")
"""Objectives whose loss depends on what the labels are, and on which of them count."""
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "dcd": [{}, {"mode": "symmetric"}, {"per_level": True}, {"idwt": False}, {"bands": "all"}],
    "fgbvd": [{}, {"divergence": "kl"}],
    "figkd": [{}, {"axis": "class"}],
    "cwd": [{}, {"maps": "features"}],
    "freekd": [{"prompt_iterations": 0}],
    "logits": [{}, {"balance": "classes"}],
    "soft": [{"alpha": 0.1}, {"alpha": 0.1, "source": "live", "where_ignored": False}],
}
VARIANTS = [
    (name, settings, labels)
    for name in OBJECTIVES
    for settings in SETTINGS.get(name, [{}])
    for labels in ("classes", *(("ignored", "regions") if name in READ_LOGITS else ()))
]


class Mixing(Objective):
    """What must not be: a constant that was made on the CPU."""

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        return {"loss": (step.student_logits * torch.ones(SHAPE)).sum()}


class Asking(Objective):
    """What must not be: a number that Python waits for."""

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        return {"loss": step.student_logits.sum() * step.student_logits.max().item()}


class Copying(Objective):
    """What must not be: random numbers that are drawn on the CPU."""

    def forward(self, step: StepOutputs) -> dict[str, torch.Tensor]:
        return {"loss": (step.student_logits * torch.rand(SHAPE).to(step.student_logits.device)).sum()}


class NoCopies(TorchDispatchMode):
    """Refuses copies from the CPU to another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        written = result if isinstance(result, torch.Tensor) else None
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and written is not None:
            sources = tensors[-1:] if func.overloadpacket is torch.ops.aten.copy_ else tensors
            if written.device.type != "cpu" and any(source.device.type == "cpu" for source in sources):
                raise RuntimeError("copied from the CPU within a step")
        return result


def asks_for_a_driver() -> bool:
    """PyTorch 2.6 does, 2.14 does not, and releases between were not tried."""
    if Version(torch.__version__) >= Version("2.14"):
        return False
    try:
        with FakeTensorMode():
            torch.empty(1, device=DEVICE)[0]
    except RuntimeError:
        return True
    return False


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules are made on the fake device, since PyTorch cannot move fake ones; no fake matrix outlives a test.

    Without a GPU PyTorch makes no generator of one; its own stands in, on the device where the numbers are asked for.
    """
    if asks_for_a_driver():
        pytest.skip(f"PyTorch {torch.__version__} asks for a driver when a fake CUDA tensor is indexed")
    monkeypatch.setattr(nn.Module, "to", lambda module, *arguments, **options: module)
    monkeypatch.setattr(StepOutputs, "generator", lambda step, purpose: None)
    yield
    for cached in (_level_matrices, band_projection, butterworth, _class_details):
        cached.cache_clear()


def loss_on_the_device(
    kind: type[Objective], settings: ObjectiveSettings, monkeypatch: pytest.MonkeyPatch, labels: str = "classes"
) -> Any:
    """The loss of a step as mixed precision makes it: the student's features are half precision.

    Args:
        kind, settings: of the objective.
        monkeypatch: pytest's.
        labels: ``classes``; ``ignored``: some of their voxels do not count; ``regions``: likewise, of regions.
    """
    regions, ignored = labels == "regions", labels != "classes"
    monkeypatch.setitem(OBJECTIVES, "it", kind)
    with FakeTensorMode():
        with DEVICE:
            teacher = FrozenTeacher(TinyNetwork(), NETWORKS.teacher_channels, DEVICE)
            distillation = Distillation({"it": settings}, replace(NETWORKS, has_regions=regions))
        image = torch.empty(2, 1, *SHAPE, device=DEVICE)
        target = torch.empty(2, HEADS + 1 if regions else 1, *SHAPE, device=DEVICE)
        features, logits = teacher.outputs(image)
        student = [
            torch.empty(2, channels, *shape, device=DEVICE, dtype=torch.float16)
            for channels, shape in zip(NETWORKS.student_channels, (SHAPE, HALF), strict=True)
        ]
        targets = read_targets(target, regions, HEADS if ignored else None, HEADS)
        step = StepOutputs(
            image=image,
            student_features=student,
            student_logits=torch.empty(2, HEADS, *SHAPE, device=DEVICE),
            teacher_features=[feature.half() for feature in features],
            teacher_logits=logits.float(),
            targets=targets,
            teacher=teacher,
            task_loss=lambda own: nn.functional.cross_entropy(own, targets.classes),
            epoch=0,
            iteration=0,
            all_logits=(torch.empty(2, HEADS, *SHAPE, device=DEVICE), torch.empty(2, HEADS, *HALF, device=DEVICE)),
            scale_weights=(0.7, 0.3),
            soft_labels=torch.empty(2, HEADS if regions else HEADS - 1, *SHAPE, device=DEVICE),
        )
        distillation(step)  # constants such as the matrices of wavelets are made, and kept, in the first step
        with NoCopies():
            teacher.outputs(image)
            loss, terms = distillation(step)
        assert "it" in terms
        return loss


@pytest.mark.usefixtures("no_gpu_needed")
@pytest.mark.filterwarnings("ignore:.*Disabling autocast:UserWarning")
@pytest.mark.parametrize(("name", "settings", "labels"), VARIANTS, ids=[" ".join(map(str, one)) for one in VARIANTS])
def test_stays_on_its_device_in_float32(
    name: str, settings: dict[str, Any], labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = OBJECTIVES[name]
    weight = {} if name == "soft" else {"weight": 0.1}
    loss = loss_on_the_device(kind, kind.Settings(**weight, **settings), monkeypatch, labels)
    assert loss.device == DEVICE
    assert loss.dtype == torch.float32


@pytest.mark.usefixtures("no_gpu_needed")
@pytest.mark.filterwarnings("ignore:.*Disabling autocast:UserWarning")
def test_a_constant_on_the_cpu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        loss_on_the_device(Mixing, ObjectiveSettings(), monkeypatch)


@pytest.mark.usefixtures("no_gpu_needed")
@pytest.mark.filterwarnings("ignore:.*Disabling autocast:UserWarning")
def test_waiting_for_a_number_and_copies_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataDependentOutputException):
        loss_on_the_device(Asking, ObjectiveSettings(), monkeypatch)
    with pytest.raises(RuntimeError, match="copied from the CPU within a step"):
        loss_on_the_device(Copying, ObjectiveSettings(), monkeypatch)


@pytest.mark.usefixtures("no_gpu_needed")
@pytest.mark.filterwarnings("ignore:.*Disabling autocast:UserWarning")
@pytest.mark.parametrize("regions", [False, True])
def test_logits_of_several_teachers_stay_there(regions: bool) -> None:
    with FakeTensorMode():
        with DEVICE:
            each = [FrozenTeacher(TinyNetwork(), NETWORKS.teacher_channels, DEVICE) for _ in range(2)]
        image = torch.empty(2, 1, *SHAPE, device=DEVICE)
        with NoCopies():
            _, logits = Teachers(each, "first", regions).outputs(image, 0, features=True, logits=True)
    assert logits is not None
    assert (logits.device, logits.dtype) == (DEVICE, torch.float32)


def test_random_numbers_are_drawn_where_the_networks_are() -> None:
    step = make_step()
    generator = step.generator("a")
    assert generator.device == step.image.device
    first = torch.rand(3, generator=generator)
    assert torch.equal(first, torch.rand(3, generator=make_step().generator("a")))
    assert not torch.equal(first, torch.rand(3, generator=step.generator("b")))
    assert not torch.equal(first, torch.rand(3, generator=replace(step, seed=4).generator("a")))
