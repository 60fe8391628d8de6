"""The demonstration's commands are found wherever pip put them, and none outlives the demonstration."""

from __future__ import annotations

import errno
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.errors import MissingRequirement, RunFailed
from nnunet_kd.workflows.demo import commands
from nnunet_kd.workflows.demo.commands import run_with_progress, script
from nnunet_kd.workflows.demo.demonstration import Demonstration


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
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), MissingRequirement), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_no_command_outlives_an_error(
    error: BaseException, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    original = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(original(*arguments, **options))
        return started[0]

    def fail(line: str) -> bool:
        raise error

    monkeypatch.setattr(commands.subprocess, "Popen", start)
    with pytest.raises(raised):
        run_with_progress(
            "wait", ["/bin/sh", "-c", "echo begun; exec sleep 60"], tmp_path / "log", {}, steps=1, is_step=fail
        )
    assert started[0].returncode is not None


def test_a_failed_command_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"(?s)count failed \(exit code 3\).*\n20\nThe whole output: .*log"):
        run_with_progress("count", ["/bin/sh", "-c", "seq 20; exit 3"], tmp_path / "log", {})
    assert (tmp_path / "log").read_text().splitlines()[0] == "1"
