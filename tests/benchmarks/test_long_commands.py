"""Commands that run for hours, and what ends them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import long_commands
import pytest

STOPS = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(0.3), print("stopped", file=open(sys.argv[1], "a")), sys.exit(1)))
open(sys.argv[1], "a").close()
time.sleep(30)
"""


def test_ctrl_c_lets_the_command_stop_in_its_own_time(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def interrupt() -> None:
        for _ in range(1000):
            if told.is_file():
                break
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        long_commands.code_of(sys.executable, "-c", STOPS, told)
    thread.join()
    assert ended.value.code == long_commands.INTERRUPTED
    assert told.read_text() == "stopped\n"


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = f"import os, signal; os.kill({os.getpid()}, signal.SIGHUP); exit(5)"
        assert long_commands.code_of(sys.executable, "-c", hang_up) == 5
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failure_meanwhile_leaves_nothing_behind(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def fail() -> None:
        if told.is_file():
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        long_commands.code_of(sys.executable, "-c", STOPS, told, every=0.1, meanwhile=fail)
    assert told.read_text() == "stopped\n"


def test_something_is_done_while_a_command_runs() -> None:
    looks: list[int] = []
    code = long_commands.code_of(
        sys.executable, "-c", "import time; time.sleep(0.7); exit(3)", every=0.1, meanwhile=lambda: looks.append(1)
    )
    assert code == 3
    assert looks
    with pytest.raises(SystemExit) as ended:
        long_commands.run(sys.executable, "-c", "exit(4)")
    assert ended.value.code == 4
