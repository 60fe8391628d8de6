"""The demonstration's commands are found wherever pip put them, and none outlives the demonstration."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from pathlib import Path

import pytest

from nnunet_kd.errors import MissingRequirement, RunFailed
from nnunet_kd.workflows.demo.commands import run_with_progress, script
from nnunet_kd.workflows.demo.demonstration import Demonstration
from tests.workflows.sweep.test_execution import is_gone


def test_commands_are_looked_for_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: tmp_path / name for name in ("beside", "user", "path")}
    monkeypatch.setattr(
        sysconfig, "get_path", lambda name, scheme=None: str(places["beside" if scheme is None else "user"])
    )
    monkeypatch.setenv("PATH", str(places["path"]))
    with pytest.raises(MissingRequirement, match=r"there is no command nnunet-kd, neither in .*beside nor"):
        script("nnunet-kd")
    for place in ("path", "user", "beside"):
        places[place].mkdir()
        command = places[place] / "nnunet-kd"
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
        assert script("nnunet-kd") == str(command)
    assert script(sys.executable) == sys.executable


def test_what_is_missing_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingRequirement, match="file is no folder that can be written to"):
        Demonstration(tmp_path / "file").run()
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme=None: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingRequirement, match="there is no command nnUNetv2_plan_and_preprocess"):
        Demonstration(tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ending", "raised"),
    [("full disk", MissingRequirement), ("Ctrl-C", KeyboardInterrupt), ("closed terminal", SystemExit)],
)
def test_nothing_of_a_command_outlives_an_error(ending: str, raised: type[BaseException], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    worker = f"sleep 60 & echo $! $$ > {pids}; trap 'touch {tmp_path}/cleaned; exit 1' INT; echo begun; wait"

    def end(line: str) -> bool:
        os.kill(os.getpid(), signal.SIGINT if ending == "Ctrl-C" else signal.SIGHUP)
        return False

    log = Path("/dev/full") if ending == "full disk" else tmp_path / "log"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have had it ignored
    try:
        with pytest.raises(raised):
            run_with_progress("wait", ["/bin/sh", "-c", worker], log, {}, steps=1, is_step=end)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())
    assert (tmp_path / "cleaned").exists()


def test_a_command_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("no program\n")
    program.chmod(0o755)
    with pytest.raises(MissingRequirement, match=r"program cannot be started: Exec format error\. .*install"):
        run_with_progress("start", [str(program)], tmp_path / "log", {})


def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingRequirement, match=r"the output of 'start' could not be written to .*log"):
        run_with_progress("start", ["/bin/sh", "-c", "true"], tmp_path / "nowhere" / "log", {})


def test_a_failed_command_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"(?s)count failed \(exit code 3\).*\n20\nThe whole output: .*log"):
        run_with_progress("count", ["/bin/sh", "-c", "seq 20; exit 3"], tmp_path / "log", {})
    assert (tmp_path / "log").read_text().splitlines()[0] == "1"
