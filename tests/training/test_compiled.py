"""Student and teacher under ``torch.compile``, as on a GPU: eager and compiled side by side, stopped and resumed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.nnunet import training as adapter
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, write_untrained_teacher
from tests.conftest import make_plans
from tests.distillation.objectives.test_every_objective import TRAINERS, WITHOUT_OBJECTIVES
from tests.training.tiny_trainer import close_epoch, ready, save, steps, trainer

# a network of two stages, which compiles fast, has no weights of deep supervision to divide

FEATURES = (8, 16)
EVERY = {**TRAINERS, **WITHOUT_OBJECTIVES}
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")


@pytest.fixture
def three_stages(tmp_path: Path) -> Iterator[dict]:
    """The plan of a teacher whose decoder has two scales."""
    made = make_plans(features=(8, 16, 16), patch=(8, 8, 8))
    with nnunet_folders(tmp_path):
        write_untrained_teacher(made, "3d_fullres", DATASET_JSON)
        yield made


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """From its call on, trainers compile with the backend."""

    def start(backend: str) -> None:
        monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
        monkeypatch.setattr(adapter, "COMPILE_BACKEND", backend)
        monkeypatch.setattr(
            torch, "compile", partial(torch.compile, backend=backend)
        )  # nnU-Net's call, for the student

    yield start
    torch._dynamo.reset()


def compiled(
    plans: dict,
    name: str,
    backend: str,
    compiling: Callable[[str], None],
    tolerance: float,
    deep_supervision: bool = False,
) -> DistillationTrainer:
    """A trainer after two steps, whose losses are those of the same without compilation."""
    kind, *assignments = EVERY[name]
    expected = steps(ready(kind, plans, *assignments, deep_supervision=deep_supervision), 2)
    compiling(backend)
    made = ready(kind, plans, *assignments, deep_supervision=deep_supervision)
    assert isinstance(made.network, torch._dynamo.OptimizedModule)
    found = steps(made, 2)
    assert found == pytest.approx(expected, rel=tolerance)
    return made


def stopped_and_resumed(plans: dict, name: str, made: DistillationTrainer) -> None:
    """What comes next is the same, to the last bit, in a new trainer that has the checkpoint alone."""
    kind, *assignments = EVERY[name]
    close_epoch(made)
    path = save(made)
    resumed = trainer(kind, plans, "seed=1", *assignments, continue_training=True)
    resumed.enable_deep_supervision = False
    with contextlib.redirect_stdout(io.StringIO()):
        made.on_train_epoch_start()
        resumed.load_checkpoint(str(path))
        resumed.prepare_distillation()
        resumed.on_train_epoch_start()
    assert steps(resumed, 1, first_seed=2) == steps(made, 1, first_seed=2)


@pytest.mark.parametrize("name", EVERY)
def test_every_trainer(plans: dict, name: str, compiling: Callable[[str], None]) -> None:
    compiled(plans, name, "aot_eager", compiling, 1e-5)


def test_scales_of_deep_supervision(three_stages: dict, compiling: Callable[[str], None]) -> None:
    compiled(three_stages, "soft", "aot_eager", compiling, 1e-5, deep_supervision=True)


def test_all_objectives_at_once_stopped_and_resumed(plans: dict, compiling: Callable[[str], None]) -> None:
    stopped_and_resumed(plans, "all at once", compiled(plans, "all at once", "aot_eager", compiling, 1e-5))


@pytest.mark.nightly
@pytest.mark.parametrize("name", EVERY)
def test_every_trainer_with_the_default_backend(plans: dict, name: str, compiling: Callable[[str], None]) -> None:
    stopped_and_resumed(plans, name, compiled(plans, name, "inductor", compiling, 1e-4))
