"""Every layer against least squares on the augmented system, and inputs that leave little to fit."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_kd.distillation.starts import observation
from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.distillation.starts.pairing import pair
from nnunet_kd.errors import PlanError, TeacherError
from tests.distillation.starts.networks import PLAIN, RESIDUAL, every_channel_twice, images, largest_difference, network

RIDGE = 1e-2


def _windows(convolution: nn.Module, image: torch.Tensor) -> np.ndarray:
    """Rows of ``(voxels, C * kernel)``, by convolving with kernels of a single one: slow and obvious."""
    channels, kernel = image.shape[1], convolution.kernel_size
    columns = []
    for channel, *place in itertools.product(range(channels), *map(range, kernel)):
        single = torch.zeros(1, channels, *kernel, dtype=image.dtype)
        single[(0, channel, *place)] = 1
        convolve = functional.conv3d if len(kernel) == 3 else functional.conv2d
        columns.append(convolve(image, single, stride=convolution.stride, padding=convolution.padding).flatten())
    return torch.stack(columns, 1).numpy()


def _inputs_and_outputs(net: nn.Module, names: list[str], patches: list[torch.Tensor]) -> dict[str, list[tuple]]:
    seen: dict[str, list[tuple]] = {name: [] for name in names}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen[name].append((inputs[0].clone(), output.clone()))
        )
        for name in names
    ]
    with torch.no_grad():
        for patch in patches:
            net(patch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_layer_is_the_least_squares_solution(dimensions: int) -> None:
    teacher, student = (
        network(features=(4, 6, 8), dimensions=dimensions),
        network(features=(2, 3, 4), dimensions=dimensions),
    )
    settings = InheritanceSettings(ridge=RIDGE, rescale=False, heads="logits", prior="teacher")
    patches = images(3, dimensions)
    kept = {fit.name: list(fit.kept) for fit in inherit(teacher, student, patches, settings)}
    names = [f"{name}.conv" if ".convs." in name else name for name in kept]
    ours, theirs = (_inputs_and_outputs(net, names, patches) for net in (student, teacher))
    before = {"encoder.stages.0.0.convs.0": [0, 1]}
    for stage, place in itertools.product(range(3), range(2)):
        name = f"encoder.stages.{stage}.0.convs.{place}"
        previous = f"encoder.stages.{stage}.0.convs.0" if place else f"encoder.stages.{stage - 1}.0.convs.1"
        before.setdefault(name, kept.get(previous, []))
    for stage, skip in ((0, 1), (1, 0)):
        up, skipped = f"decoder.transpconvs.{stage}", f"encoder.stages.{skip}.0.convs.1"
        before[up] = kept["encoder.stages.2.0.convs.1" if stage == 0 else "decoder.stages.0.convs.1"]
        up_width = teacher.get_submodule(up).out_channels
        before[f"decoder.stages.{stage}.convs.0"] = kept[up] + [channel + up_width for channel in kept[skipped]]
        before[f"decoder.stages.{stage}.convs.1"] = kept[f"decoder.stages.{stage}.convs.0"]
        before[f"decoder.seg_layers.{stage}"] = kept[f"decoder.stages.{stage}.convs.1"]
    assert set(before) == set(kept)
    for name, layer in zip(kept, names, strict=True):
        module, of_teacher = student.get_submodule(layer), teacher.get_submodule(layer)
        seen = list(zip(ours[layer], theirs[layer], strict=True))
        if name != layer:
            _check_normed(module, of_teacher, seen, kept[name], before[name])
        else:
            _check_bare(module, of_teacher, seen, kept[name], before[name])


def _check_normed(module, of_teacher, seen, outputs: list[int], inputs: list[int]) -> None:
    prior = of_teacher.weight.detach()[outputs][:, inputs].flatten(1).T.numpy()
    rows, wanted = [], []
    for (image, _), (_, target) in seen:
        windows = _windows(module, image)
        values = target[0, outputs].flatten(1).T.numpy()
        weight = 1 / np.sqrt(values.var(0).mean())
        rows.append(weight * (windows - windows.mean(0)))
        wanted.append(weight * (values - values.mean(0)))
    design = np.concatenate(rows)
    penalty = np.sqrt(RIDGE * np.square(design).sum() / design.shape[1])
    augmented = np.concatenate([design, penalty * np.eye(design.shape[1])])
    expected = np.linalg.lstsq(augmented, np.concatenate([*wanted, penalty * prior]), rcond=None)[0]
    found = module.weight.detach().flatten(1).T.numpy()
    assert np.abs(found - expected).max() < 1e-8 * np.abs(expected).max()


def _check_bare(module, of_teacher, seen, outputs: list[int], inputs: list[int]) -> None:
    """All places of a kernel in one system, with one intercept."""
    transposed = isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))
    kernel = module.kernel_size
    places = list(itertools.product(*map(range, kernel)))
    features = torch.cat([image[0].flatten(1) for (image, _), _ in seen], 1).T.numpy()
    centred = features - features.mean(0)
    penalty = np.sqrt(RIDGE * np.square(centred).sum() / features.shape[1])
    count, channels = features.shape
    design = np.zeros((len(places) * (count + channels), len(places) * channels + 1))
    wanted = np.zeros((len(design), len(outputs)))
    found = np.zeros((design.shape[1], len(outputs)))
    for number, place in enumerate(places):
        rows, columns = slice(number * count, (number + 1) * count), slice(number * channels, (number + 1) * channels)
        design[rows, columns], design[rows, -1] = features, 1
        window = tuple(slice(start, None, step) for start, step in zip(place, kernel, strict=True))
        wanted[rows] = torch.cat([target[(0, outputs, *window)].flatten(1) for _, (_, target) in seen], 1).T.numpy()
        below = slice(len(places) * count + number * channels, len(places) * count + (number + 1) * channels)
        design[below, columns] = penalty * np.eye(channels)
        weight, of_student = of_teacher.weight.detach(), module.weight.detach()
        if not transposed:
            weight, of_student = weight.transpose(0, 1), of_student.transpose(0, 1)
        wanted[below] = penalty * weight[(slice(None), slice(None), *place)][inputs][:, outputs].numpy()
        found[columns] = of_student[(slice(None), slice(None), *place)].numpy()
    found[-1] = module.bias.detach().numpy()
    expected = np.linalg.lstsq(design, wanted, rcond=None)[0]
    assert np.abs(found - expected).max() < 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_a_teacher_with_every_channel_twice_is_inherited_without_loss(kind: type[nn.Module], dimensions: int) -> None:
    small, student = (network(kind, (2, 3, 4, 4), dimensions) for _ in range(2))
    teacher = every_channel_twice(small, network(kind, (4, 6, 8, 8), dimensions))
    assert largest_difference(small, teacher, dimensions) < 1e-12
    inherit(teacher, student, images(3, dimensions), InheritanceSettings(ridge=1e-10))
    assert largest_difference(teacher, student, dimensions) < 1e-6


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((4, 6, 8, 8), (3, 3, 4, 4)), ((6, 6, 8, 8), (2, 3, 4, 4))],
    ids=["only the teacher has a projection", "only the student has one"],
)
def test_residual_skips_that_do_not_match(teacher: tuple, student: tuple) -> None:
    large, small, sliced = network(RESIDUAL, teacher), network(RESIDUAL, student), network(RESIDUAL, student)
    fits = {fit.name: fit.unexplained for fit in inherit(large, small, images(), InheritanceSettings())}
    slices = {fit.name: fit.unexplained for fit in inherit(large, sliced, images(), InheritanceSettings(refit=False))}
    block = "encoder.stages.1.blocks.0"
    assert f"{block}.conv2" not in fits, "it stands for what the skip leaves, not for the teacher's own"
    assert fits[block] < 0.8 * slices[block]


def test_the_last_convolution_stands_for_what_a_foreign_skip_leaves() -> None:
    """The student's identity skip carries other channels than the teacher's projection: the sum still is the teacher's."""
    large, small = network(RESIDUAL, (4, 6, 8, 8), blocks=1), network(RESIDUAL, (3, 3, 4, 4), blocks=1)
    found = pair(large, small)
    mended = [step for step in found.steps if getattr(step, "remainder_of", None)]
    assert [step.target for step in mended] == ["encoder.stages.1.blocks.0.conv2"]
    fits = {fit.name: fit for fit in inherit(large, small, images(6), InheritanceSettings(ridge=1e-6))}
    assert fits["encoder.stages.1.blocks.0"].unexplained < 0.9


@pytest.mark.parametrize("widths", [(3, 4, 5, 5), (4, 6, 8, 7), (1, 1, 1, 1)], ids=["r=1.5", "by hand", "one channel"])
@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_any_widths(kind: type[nn.Module], widths: tuple) -> None:
    teacher, student = network(kind), network(kind, widths)
    fits = inherit(teacher, student, images(), InheritanceSettings())
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert [len(fit.kept) for fit in fits if fit.name == "encoder.stages.0.0.convs.0"] in ([], [widths[0]])


def test_heads_say_what_the_teacher_says_rather_than_how_loudly() -> None:
    def divergence(student: nn.Module, regions: bool) -> float:
        with torch.no_grad():
            said, own = (torch.cat([net(image)[0] for image in images(4)]) for net in (teacher, student))
        if regions:
            return float(functional.binary_cross_entropy_with_logits(own, said.sigmoid()))
        return float(functional.cross_entropy(own, said.softmax(1)))

    teacher = network()
    for regions in (False, True):
        students = {}
        for heads in ("logits", "probabilities"):
            torch.manual_seed(3)
            student = network(features=(2, 3, 4, 4))
            inherit(teacher, student, images(4), InheritanceSettings(heads=heads), regions=regions)
            students[heads] = divergence(student, regions)
        assert students["probabilities"] < students["logits"] - 1e-4


def test_the_same_start_bit_for_bit_and_no_trace_in_random_states() -> None:
    teacher = network(dtype=torch.float32, eps=1e-5)
    torch.manual_seed(7)
    student = network(features=(2, 3, 4, 4), dtype=torch.float32, eps=1e-5)
    again = copy.deepcopy(student)
    state = torch.get_rng_state()
    for one in (student, again):
        inherit(teacher, one, images(dtype=torch.float32), InheritanceSettings(), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    assert student.training


def test_samples_are_bounded_and_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "LEAST_SAMPLES", 300)
    monkeypatch.setattr(observation, "SAMPLES_PER_UNKNOWN", 4)
    teacher = every_channel_twice(network(features=(2, 3, 4, 4)), network())
    student = network(features=(2, 3, 4, 4))
    fits = inherit(teacher, student, images(), InheritanceSettings(ridge=1e-10))
    assert max(fit.samples for fit in fits) <= max(300, 4 * 8 * 27) + 3
    assert largest_difference(teacher, student) < 1e-4


# bad input ------------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_refused() -> None:
    teacher = network()
    with torch.no_grad():
        teacher.decoder.stages[0].convs[0].conv.weight[0, 0] = float("nan")
    student = network(features=(2, 3, 4, 4))
    before = [parameter.clone() for parameter in student.parameters()]
    with pytest.raises(TeacherError, match=r"not finite \(decoder.stages.0.convs.0"):
        inherit(teacher, student, images(), InheritanceSettings())
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_activations_that_are_not_finite_are_refused() -> None:
    teacher = network(dtype=torch.float32, eps=1e-5)
    with torch.no_grad():
        teacher.encoder.stages[1][0].convs[0].norm.weight.fill_(3e38)
    with pytest.raises(TeacherError, match="not finite on a training patch"):
        inherit(
            teacher,
            network(features=(2, 3, 4, 4), dtype=torch.float32),
            images(dtype=torch.float32),
            InheritanceSettings(),
        )


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_constant_images_give_a_finite_start(kind: type[nn.Module]) -> None:
    teacher, student = network(kind, eps=1e-5), network(kind, (2, 3, 4, 4), eps=1e-5)
    inherit(teacher, student, [torch.ones(1, 2, 8, 16, 16, dtype=torch.float64)] * 2, InheritanceSettings())
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_fewer_voxels_than_unknowns_fall_back_to_the_teachers_slice() -> None:
    teacher, student = network(), network()
    few = [image[:, :, :8, :8, :8].contiguous() for image in images(1)]
    fits = inherit(teacher, student, few, InheritanceSettings())
    assert any(fit.samples < fit.unknowns for fit in fits)
    assert largest_difference(teacher, student) < 1e-8


def test_a_bottleneck_of_one_voxel_is_refused() -> None:
    tiny = [image[:, :, :4, :8, :8].contiguous() for image in images(1)]
    with pytest.raises(PlanError, match="one voxel, of which an instance norm is not defined"):
        inherit(network(), network(features=(2, 3, 4, 4)), tiny, InheritanceSettings())


def test_what_is_not_supported_is_named() -> None:
    student = network(features=(2, 3, 4, 4))
    batch = network(norm_op=nn.BatchNorm3d, norm_op_kwargs={"affine": True})
    with pytest.raises(PlanError, match="BatchNorm3d; only instance norm"):
        inherit(batch, student, images(), InheritanceSettings())
    with pytest.raises(PlanError, match="teacher's network is a Sequential"):
        inherit(nn.Sequential(), student, images(), InheritanceSettings())
    with pytest.raises(PlanError, match="PlainConvUNet, the student's a ResidualEncoderUNet"):
        inherit(network(), network(RESIDUAL, (2, 3, 4, 4)), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="4 stages, the student 3"):
        inherit(network(), network(features=(2, 3, 4)), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="2 layers in the teacher and 1 in the student"):
        inherit(network(), network(features=(2, 3, 4, 4), blocks=1), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="8 channels in the teacher, but 9"):
        inherit(network(), network(features=(2, 3, 4, 9)), images(), InheritanceSettings())
    with pytest.raises(PlanError, match="heads have 3 outputs, the student's 2"):
        inherit(network(), network(features=(2, 3, 4, 4), num_classes=2), images(), InheritanceSettings())
    kernels = network(features=(2, 3, 4, 4), kernel_sizes=[(3, 3, 3)] * 4)
    with pytest.raises(PlanError, match="kernel, stride and padding are"):
        inherit(network(), kernels, images(), InheritanceSettings())


def test_a_network_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = network()
    decode = teacher.decoder.forward
    monkeypatch.setattr(teacher.decoder, "forward", lambda skips: [2 * one for one in decode(skips)])
    with pytest.raises(PlanError, match="computes something else than its known parts"):
        inherit(teacher, network(features=(2, 3, 4, 4)), images(), InheritanceSettings())
