"""Several processes compute what one would with the whole batch."""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.supervision import TeacherSupervision
from nnunet_kd.errors import PlanError, SettingsError
from nnunet_kd.losses.self_trained import SelfTrained
from nnunet_kd.nnunet.training import wrapped_for
from nnunet_kd.training import distributed
from nnunet_kd.training.history import LossHistory
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, random_batch, write_untrained_teacher
from tests.conftest import make_plans
from tests.distillation.objectives.test_every_objective import TRAINERS
from tests.training.tiny_trainer import ready, trainer

BATCH = 4
# its cosines of short vectors blow up float32's rounding errors; it is compared in float64
WITHOUT_IFVD = "objectives.ifvd.weight=0"
STEPS = 2
CASES = {
    "student": (["nnUNetTrainerStudent"], False),
    **{name: (arguments, False) for name, arguments in TRAINERS.items()},
    "stored soft labels": (["nnUNetTrainerSoft"], False),
    "stored soft labels, batch dice": (["nnUNetTrainerSoft"], True),
    "all at once": ([*TRAINERS["all at once"], WITHOUT_IFVD], False),
    "cwd on features": (["nnUNetTrainerCWD", "objectives.cwd.maps=features"], False),
    "all at once, batch dice": ([*TRAINERS["all at once"], WITHOUT_IFVD], True),
    "from the second epoch on": (["nnUNetTrainerDCD", "objectives.dcd.schedule={start: 1, kind: constant}"], False),
}


# what explores works in float32
IN_FLOAT32 = {
    name for name, (arguments, _) in CASES.items() if any(n in str(arguments).lower() for n in ("fopro", "freekd"))
}


def plans_for(batch_dice: bool) -> dict[str, Any]:
    made = make_plans(features=(8, 16, 16), patch=(16, 16, 16))
    made["configurations"]["3d_fullres"].update(batch_size=BATCH, batch_dice=batch_dice)
    return made


def observe(case: str, rank: int, size: int) -> list[dict[str, torch.Tensor]]:
    """Gradients, what learns by itself, and the mean losses, after every step on this process's part of the batch."""
    (name, *assignments), batch_dice = CASES[case]
    made = ready(name, plans_for(batch_dice), *assignments)
    # nnU-Net gives the coarsest output another weight in one process than in several
    made.loss.segmentation.weight_factors = (1.0, 1e-6)
    explorers = [] if made.supervision is None else made.supervision.distillation.modules()
    for explorer in (module for module in explorers if isinstance(module, SelfTrained)):
        # Adam divides gradients by their own size, and so makes rounding errors of gradients near zero as large as any
        explorer._optimizer = torch.optim.SGD(explorer.module.parameters(), lr=0.1)
    mine = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    seen = []
    for index in range(STEPS):
        made.current_epoch = index
        whole = random_batch(made, index)
        batch = {"data": whole["data"][mine], "target": [target[mine] for target in whole["target"]]}
        batch |= {KEY: whole[KEY][mine]} if KEY in whole else {}
        made.train_step(batch)
        modules = {"student": made.network} | (
            {} if made.supervision is None else {"learned": made.supervision.distillation}
        )
        values = {}
        for key, module in modules.items():
            values |= {
                f"{key} gradient of {path.removeprefix('module.')}": parameter.grad.clone()
                for path, parameter in module.named_parameters()
                if parameter.grad is not None
            }
            for path, part in module.named_modules():
                if isinstance(part, SelfTrained):
                    values |= {f"{key} {path}.{own}": value.clone() for own, value in part.named_parameters()}
        values |= {f"loss {key}": torch.tensor(value) for key, value in made.history.close_epoch(index).items()}
        seen.append(values)
    if made.supervision is not None:
        made.supervision.remove()
    return seen


def _draw_as_one(rank: int, size: int) -> None:
    """Every process draws the random numbers of the whole batch and takes its part, which makes the comparison exact."""
    TeacherSupervision._step_seed = lambda self: zlib.crc32(f"{self._iteration}".encode())
    local = BATCH // size

    def part_of(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def drawn(*shape: Any, generator: torch.Generator | None = None, **options: Any) -> torch.Tensor:
            dimensions = shape[0] if shape and not isinstance(shape[0], int) else shape
            if generator is None or dimensions[0] != local:
                return draw(*shape, generator=generator, **options)
            return draw((BATCH, *dimensions[1:]), generator=generator)[rank * local : (rank + 1) * local]

        return drawn

    torch.rand, torch.randn = part_of(torch.rand), part_of(torch.randn)


def _worker(root: str, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    with nnunet_folders(Path(root)), contextlib.redirect_stdout(io.StringIO()):
        if size > 1:
            dist.init_process_group("gloo", init_method=f"file://{root}/group_of_{size}", rank=rank, world_size=size)
        _draw_as_one(rank, size)
        observed = {}
        for case in CASES:
            torch.set_default_dtype(torch.float32 if case in IN_FLOAT32 else torch.float64)
            observed[case] = observe(case, rank, size)
        torch.save(observed, f"{root}/{size}_{rank}.pt")
        if size > 1:
            dist.destroy_process_group()


def _run(root: Path, size: int) -> list[dict[str, Any]]:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.test_distributed"])
    children = [processes.Process(target=_worker, args=(str(root), rank, size)) for rank in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        assert child.exitcode == 0
    return [torch.load(root / f"{size}_{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """What every process saw, by their number."""
    root = tmp_path_factory.mktemp("processes")
    with nnunet_folders(root):
        write_untrained_teacher(plans_for(False), "3d_fullres", DATASET_JSON)
    return functools.cache(lambda size: _run(root, size))


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("case", CASES)
def test_as_one_process_with_the_whole_batch(
    observed: Callable[[int], list[dict[str, Any]]], case: str, size: int
) -> None:
    (alone,) = observed(1)
    worst = [0.0] * STEPS
    for rank in range(size):
        for step, (expected, seen) in enumerate(zip(alone[case], observed(size)[rank][case], strict=True)):
            assert seen.keys() == expected.keys(), step
            assert any("gradient" in key for key in seen)
            largest = max(float(value.abs().max()) for key, value in expected.items() if "gradient" in key)
            for key, value in expected.items():
                scale = largest if "gradient" in key else max(1e-3, float(value.abs().max()))
                worst[step] = max(worst[step], float((seen[key] - value).abs().max()) / scale)
                assert torch.equal(seen[key], observed(size)[0][case][step][key]), f"{key} differs between processes"
    print(f"{case}, {size} processes: {', '.join(f'{value:.1e}' for value in worst)}")
    assert max(worst) < (1e-5 if case in IN_FLOAT32 else torch.finfo(torch.float32).eps)


def test_a_process_may_lack_a_term(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = [{"segmentation": 1.0, "dcd": 2.0}, {"segmentation": 3.0}]
    monkeypatch.setattr("nnunet_kd.training.history.gather", lambda own: everyone)
    assert LossHistory().close_epoch(0) == {"segmentation": 2.0, "dcd": 2.0}


def test_machines_that_share_no_folder_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed.check_processes_agree(3, True)
    monkeypatch.setattr(distributed, "gather", lambda own: [own, "epoch 0 without a checkpoint"])
    distributed.check_processes_agree(0, False)
    for epoch in (3, 0):
        told = rf"differently \(epoch {epoch}, epoch 0 without a checkpoint, by rank\).*must be folders that all machines share"
        with pytest.raises(SettingsError, match=told):
            distributed.check_processes_agree(epoch, True)


def test_they_are_told_before_one_waits_for_another(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gather", lambda own: [own, "epoch 3"])
    made = trainer("nnUNetTrainerDCD", tiny)
    monkeypatch.setattr(made, "prepare_distillation", lambda: pytest.fail("it went on"))
    with pytest.raises(SettingsError, match="by rank"):
        made.on_train_start()


def test_on_several_machines_a_gpu_has_its_number_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.process_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert distributed.process_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setattr(dist, "get_rank", lambda: 3)  # -num_gpus: one machine, started by nnU-Net
    assert distributed.process_device(torch.device("cuda")) == torch.device("cuda", 3)


def test_nnunet_is_given_back_its_own_wrapper() -> None:
    before = nnunet_module.DDP
    with contextlib.suppress(ValueError), wrapped_for(torch.device("cpu")):
        assert nnunet_module.DDP is not before
        raise ValueError("whatever")
    assert nnunet_module.DDP is before


@pytest.mark.parametrize(
    ("arguments", "launched", "message"),
    [
        (["-num_gpus", "2", "-device", "cpu"], False, "use torchrun"),
        (["-num_gpus", "2", "-device", "cpu"], True, "leave -num_gpus out"),
        (["-device", "mps"], True, "need CUDA devices or -device cpu"),
    ],
)
def test_what_does_not_go_together(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], launched: bool, message: str
) -> None:
    monkeypatch.setattr(distributed, "launched_by_torchrun", lambda: launched)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    if not cli.app.registered_commands:
        cli._register()
    refused = CliRunner().invoke(cli.app, ["train", "998", "3d_fullres", "0", *arguments])
    assert isinstance(refused.exception, SettingsError)
    assert message in str(refused.exception)


def test_a_batch_smaller_than_the_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    distributed.check_batch_size(3)
    with pytest.raises(PlanError, match="a batch of 2 cannot be divided among 3 processes"):
        distributed.check_batch_size(2)
