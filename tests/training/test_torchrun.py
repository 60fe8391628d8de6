"""``nnunet-kd train`` under torchrun, on the CPU: trains, dies as a whole, resumes, validates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.workflows.bench.pair import nnunet_folders
from tests.training.tiny_training import CASES, NAME, SHORT, write_tiny_dataset

pytestmark = [
    pytest.mark.nightly,  # processes under gloo without torchrun are in test_distributed
    pytest.mark.xdist_group("torchrun"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes of torchrun in /proc"),
]


def start(log: Path, *arguments: str, processes: int = 2) -> subprocess.Popen[bytes]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = Path(sysconfig.get_path("scripts")) / "nnunet-kd"
    train = [str(command), "train", "998", "3d_fullres", "0", "-m", "dcd", "-device", "cpu", *arguments]
    environment = {**os.environ, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*torchrun, "--no-python", *train], stdout=output, stderr=subprocess.STDOUT, env=environment
        )


def settings(*assignments: str) -> list[str]:
    return [word for assignment in (*SHORT, *assignments) for word in ("--set", assignment)]


def wait_for(what: Callable[[], bool], running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert running.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def test_a_killed_process_ends_all_and_the_run_resumes(tmp_path: Path) -> None:
    with nnunet_folders(tmp_path):
        write_tiny_dataset(batch_size=2)
        fold = Path(os.environ["nnUNet_results"]) / NAME / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0"
        latest = fold / "checkpoint_latest.pth"

        log = tmp_path / "first.txt"
        running = start(log, *settings("epochs=1000", "save_every=1"))
        try:
            wait_for(latest.is_file, running, log)
            children = [
                int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            ]
            ranks = [pid for pid in children if b"LOCAL_RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
            assert len(ranks) == 1
            os.kill(ranks[0], signal.SIGKILL)
            assert running.wait(120) != 0
            assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        finally:
            if running.poll() is None:
                running.terminate()
        assert "Signal 9 (SIGKILL)" in log.read_text()
        reached = read_checkpoint(latest)["current_epoch"]

        log = tmp_path / "second.txt"
        finished = start(log, "--c", *settings(f"epochs={reached + 1}"))
        assert finished.wait(400) == 0, log.read_text()[-3000:]
        final = read_checkpoint(fold / "checkpoint_final.pth")
        assert final["current_epoch"] == len(final["nnunet_kd"]["history"]) == reached + 1
        assert len(final["nnunet_kd"]["random_states"]) == 2
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == len(CASES[4:])


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    with nnunet_folders(tmp_path):
        write_tiny_dataset(batch_size=2)
        log = tmp_path / "log.txt"
        assert start(log, *settings("epochs=1"), processes=3).wait(240) != 0
        assert "a batch of 2 cannot be divided among 3 processes" in " ".join(log.read_text().split())
