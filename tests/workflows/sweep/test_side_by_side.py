"""Trainings beside each other divide the cores, and end together."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from nnunet_kd.workflows.sweep.side_by_side import run_side_by_side, shares

PROGRAM = """
import os, sys, time
from pathlib import Path
here = Path(sys.argv[1])
print(os.environ["OMP_NUM_THREADS"], os.environ["nnUNet_n_proc_DA"])
(here / str(os.getpid())).touch()
deadline = time.time() + 20
while len(list(here.iterdir())) < 2 and time.time() < deadline:  # both are there at once
    time.sleep(0.01)
if len(sys.argv) > 2:
    time.sleep(30)
sys.exit(len(list(here.iterdir())))
"""


@pytest.mark.parametrize(
    ("jobs", "cores", "given", "wanted"),
    [
        (2, 8, {}, ("4", "4")),
        (3, 2, {}, ("1", "1")),
        (2, 8, {"OMP_NUM_THREADS": "3"}, ("3", "4")),
        (2, 8, {"nnUNet_n_proc_DA": "0"}, ("4", "0")),
    ],
)
def test_shares(jobs: int, cores: int, given: dict[str, str], wanted: tuple[str, str]) -> None:
    assert tuple(shares(jobs, cores, given).values()) == wanted


def test_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.setattr("nnunet_kd.workflows.sweep.side_by_side.usable_cores", lambda: 6)
    lines: list[str] = []
    assert run_side_by_side([str(tmp_path)], 2, lines.append, [sys.executable, "-c", PROGRAM]) == 2
    assert sorted(lines) == ["1: 3 3", "2: 3 3"]


def test_stopped_together(tmp_path: Path) -> None:
    def stop_when_both_run() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_both_run, daemon=True).start()
    code = run_side_by_side([str(tmp_path), "wait"], 2, lambda line: None, [sys.executable, "-c", PROGRAM])
    assert code == 128 + signal.SIGTERM
