"""Two processes: one computes the start, both have it, however long that takes."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_kd.distillation.features import plain_module
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.errors import TeacherError
from nnunet_kd.training import started
from nnunet_kd.workflows.bench.pair import nnunet_folders
from tests.training.tiny_training import NAME, SHORT, write_tiny_dataset


def prepared(trainer: str, *assignments: str) -> Any:
    os.environ[SET_VARIABLE] = json.dumps([*SHORT, *assignments])
    os.environ["nnUNet_n_proc_DA"] = "0"
    made = get_trainer_from_args(NAME, "3d_fullres", 0, trainer, device=torch.device("cpu"))
    made.prepare_distillation()
    return made


def _worker(root: str, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    with nnunet_folders(Path(root)), contextlib.redirect_stdout(io.StringIO()):
        if size > 1:
            dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=rank, world_size=size)
        # fitted projections are random in a process that did not compute them
        made = prepared("nnUNetTrainerDCD", "objectives.dcd.projection_start=fitted")
        found = {
            "weights": plain_module(made.network).state_dict(),
            "projections": made.supervision.distillation.state_dict(),
            "fits": len(made.start_fits),
        }
        if size > 1:

            def fail(*arguments: Any, **options: Any) -> None:
                time.sleep(1.5)  # longer than what other collectives would wait from here on
                raise TeacherError("broken")

            def impatient(*networks: Any) -> Any:
                found = pair(*networks)
                dist.barrier()
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5))
                return found

            pair = started.pair
            started.inherit, started.pair = fail, impatient  # type: ignore[assignment]
            try:
                prepared("nnUNetTrainerInherited")
            except TeacherError as error:
                found["error"] = str(error)
            dist.destroy_process_group()
        torch.save(found, f"{root}/{size}_{rank}.pt")


@pytest.mark.xdist_group("processes")
def test_one_computes_and_all_receive(tmp_path: Path) -> None:
    with nnunet_folders(tmp_path):
        write_tiny_dataset()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.test_distributed"])  # as there: there is but one
    places = [(0, 1), (0, 2), (1, 2)]
    children = [processes.Process(target=_worker, args=(str(tmp_path), *place)) for place in places]
    for child in children:
        child.start()
    for child in children:
        child.join(200)
        assert child.exitcode == 0
    alone, first, second = (torch.load(tmp_path / f"{size}_{rank}.pt", weights_only=True) for rank, size in places)
    for key in ("weights", "projections"):
        assert first[key].keys() == second[key].keys() == alone[key].keys()
        for name, value in first[key].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, second[key][name]), f"{name} differs between processes"
                # one process lays its weights out in another way, and rounds in another order
                difference = float((value - alone[key][name]).abs().max() / value.abs().max().clamp(min=1e-6))
                assert difference < 1e-4, f"{name} is not what one process computes"
    assert first["fits"] == alone["fits"] > 0
    assert second["fits"] == 0, "the start was computed twice"
    assert first["error"] == second["error"] == "broken", "a process went on without the other"
