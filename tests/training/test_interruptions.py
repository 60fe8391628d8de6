"""A training that is killed, again and again, and what is on the disk then."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import signal
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.models.checkpoint import CONTINUED_FROM, read_checkpoint
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer, nnunet_folders
from tests.training.tiny_training import NAME, SHORT, train, without_pictures, write_tiny_dataset

TRAINER = "nnUNetTrainerDCD"
FEW, MANY = 3, 20
ENDLESS = (*SHORT, "epochs=100000", "save_every=2")


class _Enough(Exception):
    pass


def _child(root: str, continued: bool, assignments: tuple[str, ...], started: Event) -> None:
    """A process of its own, to be killed: nnU-Net's loop on the tiny dataset."""

    def say_so(made: DistillationTrainer) -> None:
        real = made.on_epoch_start

        def on_epoch_start() -> None:
            started.set()
            real()

        made.on_epoch_start = on_epoch_start

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    without_pictures(pytest.MonkeyPatch())  # this process ends with the training
    with nnunet_folders(Path(root)), open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
        train(TRAINER, assignments, continued, before=say_so)


def _fold() -> Path:
    return Path(os.environ["nnUNet_results"]) / NAME / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"


def _checked_checkpoints(plans: dict[str, Any]) -> int:
    """Every checkpoint is whole and stock nnU-Net takes it; returns the epochs of the furthest."""
    epochs = [0]
    for path in (path for path in map(_fold().joinpath, CONTINUED_FROM) if path.is_file()):
        checkpoint = read_checkpoint(path)
        stock = make_trainer(
            "nnUNetTrainer", checkpoint["init_args"]["plans"], "3d_fullres", DATASET_JSON, torch.device("cpu")
        )
        with contextlib.redirect_stdout(io.StringIO()):
            stock.load_checkpoint(str(path))
        assert stock.current_epoch == checkpoint["current_epoch"]
        epochs.append(checkpoint["current_epoch"])
    return max(epochs)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.nightly)])
def test_killed_many_times_it_ends_as_if_never_killed(
    kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.tiny_training", "tests.training.test_interruptions"])
    moments = random.Random(7)
    reached, during_writes = 0, 0
    with nnunet_folders(tmp_path):
        plans = write_tiny_dataset()
        for kill in range(4 * kills):  # on a busy machine none of the first may have saved anything
            if kill >= kills and reached:
                break
            started = processes.Event()
            child = processes.Process(target=_child, args=(str(tmp_path), kill > 0, ENDLESS, started))
            child.start()
            if kill % 5 != 4:  # the fifth ones die while they start, if they are not faster
                assert started.wait(120)
            child.join(moments.uniform(0, 1.5))
            assert child.exitcode is None, "it ended by itself"
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            during_writes += bool(list(_fold().glob("*.tmp")))
            now = _checked_checkpoints(plans)
            assert now >= reached, "something saved was lost"
            reached = now
        assert reached > 0

        started = processes.Event()
        last = (*SHORT, f"epochs={reached + 2}")
        finished = processes.Process(target=_child, args=(str(tmp_path), True, last, started))
        finished.start()
        finished.join(300)
        assert finished.exitcode == 0
        assert _checked_checkpoints(plans) == reached + 2
        final = read_checkpoint(_fold() / "checkpoint_final.pth")
        assert final["current_epoch"] == reached + 2
        assert {len(values) for values in final["logging"].values()} == {reached + 2}
        interrupted = final["nnunet_kd"]["history"]
        assert len(interrupted) == reached + 2
        assert sorted(path.name for path in _fold().glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
        assert not list(_fold().glob("*.tmp"))
    print(f"{kills} kills, {during_writes} with a file half written, {reached} epochs saved")

    def stop(made: DistillationTrainer) -> None:
        real = made.on_epoch_start

        def on_epoch_start() -> None:
            if made.current_epoch == reached:
                histories.append(made.history.epochs)
                raise _Enough
            real()

        monkeypatch.setattr(made, "on_epoch_start", on_epoch_start)

    histories: list[list[dict[str, float]]] = []
    without_pictures(monkeypatch)
    with nnunet_folders(tmp_path / "uninterrupted"):
        write_tiny_dataset()
        with pytest.raises(_Enough):
            train(TRAINER, ENDLESS, before=stop)
    assert interrupted[:reached] == histories[0]
