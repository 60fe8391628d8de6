"""Encoder features: eager, compiled, between processes; and what is left afterwards."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_kd.distillation.features import EncoderCapture, find_encoder, plain_module
from nnunet_kd.distillation.objectives.base import NetworkPair
from nnunet_kd.distillation.objectives.dcd import DCDSettings
from nnunet_kd.distillation.weighting import Distillation
from nnunet_kd.errors import PlanError
from nnunet_kd.models.plans import _resolved
from tests.conftest import make_plans
from tests.distillation.objectives.steps import make_step


def make_network(architecture: str = "PlainConvUNet", seed: int = 0) -> nn.Module:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(seed)
    configuration = _resolved(make_plans(architecture, features=(4, 8, 16)), "3d_fullres")
    network: nn.Module = nnUNetTrainer.build_network_architecture(None, configuration, 1, 3, True)
    return network


@pytest.mark.parametrize("architecture", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_features_are_the_encoders_own(architecture: str, backend: str | None) -> None:
    network = make_network(architecture)
    image = torch.randn(1, 1, 16, 16, 16)
    called = network if backend is None else torch.compile(network, backend=backend)
    with EncoderCapture(called) as capture:
        called(image)
        assert capture.features == []
        capture.enabled = True
        called(image)
        assert capture.image is not None
        assert torch.equal(capture.image, image)
        for caught, own in zip(capture.features, network.encoder(image), strict=True):
            torch.testing.assert_close(caught, own, atol=0, rtol=0)
        gradients = torch.autograd.grad(
            capture.features[-1].sum(), network.encoder.stages[0].parameters(), allow_unused=True
        )
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
        capture.clear()
        capture.enabled = False
        called(image)
        assert capture.features == []
    assert not network.encoder._forward_hooks
    torch._dynamo.reset()


def test_networks_without_an_encoder_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match="Sequential has no encoder"):
        find_encoder(nn.Sequential(nn.Conv3d(1, 1, 1)))


def test_plain_module_looks_through_compile() -> None:
    network = nn.Linear(1, 1)
    assert plain_module(torch.compile(network)) is network


def distilled_gradients(images: torch.Tensor, targets: list[torch.Tensor], parallel: bool) -> dict[str, torch.Tensor]:
    """One backward pass of a segmentation-like term plus DCD; gradients of student and projections."""
    network = make_network(seed=1)
    torch.manual_seed(2)
    settings = {"dcd": DCDSettings(weight=1.0)}
    distillation: nn.Module = Distillation(settings, NetworkPair((8, 16, 32), (4, 8, 16), 3))
    student: nn.Module = network
    if parallel:
        student, distillation = DistributedDataParallel(network), DistributedDataParallel(distillation)
    with EncoderCapture(student) as capture:
        capture.enabled = True
        output = student(images)
        loss, _ = distillation(make_step(student_features=capture.features, teacher_features=targets))
        (loss + sum(level.square().mean() for level in output)).backward()
    modules = {"student": network, "distillation": plain_module(distillation)}
    return {
        f"{part}.{name}": parameter.grad.clone()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def batch() -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 1, 16, 16, 16, generator=generator)
    features = [torch.randn(4, 8 * 2**i, *(16 // 2**i,) * 3, generator=generator) for i in range(3)]
    return images, features


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    images, features = batch()
    own = slice(2 * rank, 2 * rank + 2)
    gradients = distilled_gradients(images[own], [feature[own] for feature in features], parallel=True)
    torch.save(gradients, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.nightly
def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    expected = distilled_gradients(*batch(), parallel=False)
    found: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert any(name.startswith("distillation") for name in expected)
    assert found[0].keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], gradient, atol=1e-6, rtol=1e-4)
