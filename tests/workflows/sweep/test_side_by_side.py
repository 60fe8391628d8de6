"""Trainings beside each other divide the cores, and end together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.system.sessions import start
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


COUNTING = """
import signal, sys, time
from pathlib import Path
came = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: came.append(number))
(Path(sys.argv[1]) / f"{time.time_ns()}").touch()
deadline = time.time() + 20
while not came and time.time() < deadline:
    time.sleep(0.01)
time.sleep(0.3)  # a second one would be there by now
print(came)
"""


@pytest.fixture
def survives() -> Iterator[None]:
    """Signals that nobody forwards do not end this process, whatever it was told of them before."""
    before = {number: signal.signal(number, lambda number, frame: None) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def own_group() -> Iterator[None]:
    """This process is alone in a group of its own, so that a signal to all of it reaches no other."""
    before = os.getpgrp()
    if before == os.getpid():
        pytest.skip(
            "this process leads a group already, which a signal would reach: a pipeline's other commands, for example"
        )
    os.setpgid(0, 0)
    yield
    os.setpgid(0, before)


def when_both_run(folder: Path, act: Callable[[], None]) -> None:
    def wait_and_act() -> None:
        deadline = time.monotonic() + 20
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait_and_act, daemon=True).start()


@pytest.mark.usefixtures("survives")
def test_stopped_together(tmp_path: Path) -> None:
    when_both_run(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code = run_side_by_side([str(tmp_path), "wait"], 2, lambda line: None, [sys.executable, "-c", PROGRAM])
    assert code == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.usefixtures("own_group", "survives")
def test_what_a_terminal_sends_reaches_every_job_once(tmp_path: Path, number: signal.Signals) -> None:
    """A terminal tells its whole foreground group; a second Ctrl-C would kill trainings that are about to end."""
    when_both_run(tmp_path, lambda: os.killpg(os.getpid(), number))
    lines: list[str] = []
    assert run_side_by_side([str(tmp_path)], 2, lines.append, [sys.executable, "-c", COUNTING]) == 0
    assert sorted(lines) == [f"1: [{int(number)}]", f"2: [{int(number)}]"]


@pytest.mark.usefixtures("survives")
def test_a_job_that_was_started_while_a_signal_came_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_and_stop(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        deadline = time.monotonic() + 20
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr("nnunet_kd.workflows.sweep.side_by_side.start", start_and_stop)
    lines: list[str] = []
    assert run_side_by_side([str(tmp_path)], 1, lines.append, [sys.executable, "-c", COUNTING]) == 0
    assert lines == [f"1: [{int(signal.SIGTERM)}]"]
