"""Running, failing, interrupting and continuing, with a training that takes no time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from nnunet_kd.cli.sweep import sweep
from nnunet_kd.errors import SettingsError
from nnunet_kd.system import sessions
from nnunet_kd.workflows.sweep import execution, slurm
from nnunet_kd.workflows.sweep.execution import Stopped, TrainedElsewhere, train, train_all
from nnunet_kd.workflows.sweep.planned_run import PlannedRun
from nnunet_kd.workflows.sweep.record import read_record
from tests.workflows.sweep.test_runs import plan

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(sweep)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def is_gone(pid: int) -> bool:
    """Whether a process that sleeps for minutes ends now; a killed one may take a moment on a busy machine."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            if status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def calls(run: PlannedRun) -> list[str]:
    return (run.folder / "calls.txt").read_text().splitlines()


def test_a_run_and_its_record(tiny: dict, fake: Callable) -> None:
    run = plan(settings={"epochs": 2})[1]
    assert train(run, program=fake([run])) is None
    assert (run.state(), run.epochs_finished()) == ("done", 2)
    record = read_record(run.folder)
    assert record is not None
    assert (record.state, record.starts, record.epochs_trained, record.training_seconds) == ("done", 1, 2, 2.0)
    assert record.command == ["nnunet-kd", *run.arguments, "--c"]
    assert record.checkpoint_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert record.command_seconds > 0
    assert "Epoch time: 1.5 s" in (run.folder / "sweep_run.log").read_text()
    assert train(run, program=fake([run])) is None
    assert len(calls(run)) == 1


def test_a_failure_does_not_stop_the_others_and_is_tried_again(tiny: dict, fake: Callable) -> None:
    runs = plan(seeds=[0, 1])
    (failure,) = train_all(runs, quiet(), fake(runs, **{"student, fold 0, seed 1": "fail"}))
    assert failure.run == runs[1]
    assert failure.reason == "failed with exit code 3"
    assert failure.lines[-1] == "RuntimeError: out of [memory]"
    assert [run.state() for run in runs] == ["done", "failed", "done", "done"]
    assert train_all(runs, quiet(), fake(runs)) == []
    record = read_record(runs[1].folder)
    assert record is not None
    assert (record.starts, record.epochs_trained, record.training_seconds) == (2, 3, 2.5)
    assert [len(calls(run)) for run in runs] == [1, 2, 1, 1]


def test_only_the_validation_is_made_up_for(tiny: dict, fake: Callable) -> None:
    run = plan()[0]
    failure = train(run, program=fake([run], **{str(run): "skip_validation"}))
    assert failure is not None
    assert "validation/summary.json" in failure.reason
    assert run.state() == "failed"
    assert train(run, program=fake([run])) is None
    assert [call.split()[-1] for call in calls(run)] == ["--c", "--val"]
    record = read_record(run.folder)
    assert record is not None
    assert record.training_seconds == 2.0
    assert record.command[-1] == "--c"  # that trained it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_the_training_and_rerunning_continues(
    tiny: dict, fake: Callable, number: signal.Signals
) -> None:
    runs = plan()

    def first_epoch_is_recorded() -> bool:
        # on a busy machine the training hangs before its output is read
        record = read_record(runs[0].folder)
        return record is not None and record.epochs_trained == 1

    def interrupt() -> None:
        while not ((runs[0].folder / "hanging").exists() and first_epoch_is_recorded()):
            time.sleep(0.02)
        states.append(runs[0].state())
        os.kill(os.getpid(), number)

    states: list[str] = []
    handler = signal.getsignal(number)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Stopped, match=number.name):
        train_all(runs, quiet(), fake(runs, **{str(runs[0]): "hang"}))
    assert signal.getsignal(number) is handler
    assert states == ["running"]
    assert is_gone(int((runs[0].folder / "worker.pid").read_text()))
    record = read_record(runs[0].folder)
    assert record is not None
    assert (record.state, record.epochs_trained) == ("interrupted", 1)
    assert [run.state() for run in runs] == ["todo", "todo"]
    assert runs[0].epochs_finished() == 1
    assert train_all(runs, quiet(), fake(runs)) == []
    record = read_record(runs[0].folder)
    assert record is not None
    assert (record.state, record.starts, record.epochs_trained) == ("done", 2, 3)


def test_interrupted_after_its_last_file(tiny: dict, fake: Callable) -> None:
    def interrupt(line: str) -> None:
        if "Validation complete" in line:
            raise KeyboardInterrupt

    run = plan()[0]
    with pytest.raises(KeyboardInterrupt):
        train(run, interrupt, fake([run], **{str(run): "linger"}))
    record = read_record(run.folder)
    assert record is not None
    assert (record.state, record.checkpoint_sha256) == ("done", hashlib.sha256(b"weights").hexdigest())


def test_a_killed_training_whose_workers_linger(tiny: dict, fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TIME_TO_LINGER", 0.3)
    run = plan()[0]
    started = time.monotonic()
    failure = train(run, program=fake([run], **{str(run): "die"}))
    assert failure is not None
    assert failure.reason == "was ended by signal SIGKILL"
    assert time.monotonic() - started < 60
    assert is_gone(int((run.folder / "worker.pid").read_text()))


def test_two_sweeps_share_the_runs(tiny: dict, fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_LOCK_WAIT", 0.1)
    runs = plan(seeds=[0, 1])
    program = fake(runs)
    console = quiet()
    runs[0].results.mkdir(parents=True)
    with runs[0].lock(0):
        assert runs[0].state() == "running"
        with pytest.raises(TrainedElsewhere, match="student, fold 0, seed 0"):
            train(runs[0], program=program)
        assert train_all(runs, console, program) == []
    assert "left   student, fold 0, seed 0: another process trains it" in console.file.getvalue()
    assert [run.state() for run in runs] == ["todo", "done", "done", "done"]
    assert not (runs[0].folder / "calls.txt").exists()


def test_what_the_other_sweep_gives_up_is_taken_over(
    tiny: dict, fake: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_LOCK_WAIT", 0.1)
    runs = plan()
    runs[0].results.mkdir(parents=True)
    lock = runs[0].lock(0)
    lock.acquire()
    monkeypatch.setattr(
        execution._EpochWatch, "__call__", lambda *_: lock.release()
    )  # the other process ends while this one trains the next run
    assert train_all(runs, quiet(), fake(runs)) == []
    assert [run.state() for run in runs] == ["done", "done"]


def test_the_command(tiny: dict, fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["998", "3d_fullres", "--methods", "student,dcd", "--name", "mine", "-device", "cpu"]
    runs = plan(name="mine")
    folder = runs[0].results.parents[1]

    def run_command(*arguments: str, **behaviour: str) -> tuple[int, str]:
        monkeypatch.setattr(
            "nnunet_kd.workflows.sweep.command.train_all", partial(train_all, program=fake(runs, **behaviour))
        )
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*command, *arguments])
        return result.exit_code, result.output

    code, output = run_command("--dry-run")
    assert code == 0
    assert "2 todo" in output
    place = runs[0].folder.relative_to(folder)
    assert f"Folders: {folder}/VARIANT/seed_SEED/{place.parts[2]}/*/fold_FOLD" in output
    assert not folder.exists()
    code, output = run_command(**{str(runs[0]): "fail"})
    assert code == 1
    assert "out of [memory]" in output
    assert "1 of 2 runs failed" in output
    code, output = run_command()
    assert code == 0
    assert "1 done, 1 failed" in output
    assert f"compare --sweep {folder} --reference student" in output
    code, output = run_command()
    assert "2 done" in output
    assert [len(calls(run)) for run in runs] == [2, 1]
    from_file = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(folder / "sweep.yaml"), "--dry-run"])
    assert "2 done" in from_file.output
    with pytest.raises(SettingsError, match="there null, asked for 9"):
        CliRunner().invoke(app, [*command, "--set", "epochs=9"], catch_exceptions=False)


def test_the_command_tells_what_others_do(tiny: dict, fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_LOCK_WAIT", 0.1)
    student, _ = runs = plan(name="mine")
    monkeypatch.setattr("nnunet_kd.workflows.sweep.command.train_all", partial(train_all, program=fake(runs)))
    command = ["998", "3d_fullres", "--methods", "student,dcd", "--name", "mine", "-device", "cpu"]
    student.results.mkdir(parents=True)
    with student.lock(0):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == 0
    assert "Still trained by other processes: 1" in result.output
    assert [run.state() for run in runs] == ["todo", "done"]

    def fails_elsewhere(*_: object) -> list:
        failure = train(student, program=fake(runs, **{str(student): "fail"}))
        assert failure is not None
        return []

    monkeypatch.setattr("nnunet_kd.workflows.sweep.command.train_all", fails_elsewhere)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == 1
    assert "Failed in other processes: 1" in result.output


@pytest.mark.nightly
def test_an_array_through_submitit(tiny: dict, fake: Callable, tmp_path: Path) -> None:
    runs = plan()
    program = fake(runs, **{str(runs[1]): "fail"})
    jobs = slurm.submit(runs, {"cluster": "local", "timeout_min": 2, "partition": "x"}, tmp_path / "jobs", program)
    assert jobs[0].exception() is None
    assert runs[0].state() == "done"
    failed = jobs[1].exception()
    assert "dcd, fold 0, seed 0 failed with exit code 3" in str(failed)
    assert runs[1].state() == "failed"
    assert "Epoch time: 0.5 s" in jobs[1].stdout()


def test_a_job_goes_on_after_any_number_of_time_limits(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import submitit

    monkeypatch.setattr(shutil, "which", lambda name, *_: name)  # there is no SLURM here
    made: list[Any] = []
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", lambda self, *_: made.append(self._executor) or [])
    slurm.submit(plan(), {"timeout_min": 5, "cluster": "slurm"}, tmp_path / "jobs")
    assert made[0].max_num_timeout == slurm.MOST_TIMEOUTS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "time limit"),
        ({"timeout_min": 5, "cluster": "moon"}, "slurm and local"),
        ({"timeout_min": 5, "partitoin": "gpu"}, "known are timeout_min.*partition"),
        ({"timeout_min": 5, "nodes": 2}, "--slurm nodes"),
        ({"timeout_min": "long", "cluster": "local"}, "timeout_min"),
    ],
)
def test_parameters_of_slurm(tiny: dict, tmp_path: Path, given: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        slurm.submit(plan(), given, tmp_path / "jobs")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_a_sweep_unless_nohup_says_otherwise(ignored: bool) -> None:
    stopped: contextlib.AbstractContextManager[object] = pytest.raises(Stopped, match="SIGHUP")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with contextlib.nullcontext() if ignored else stopped, execution._stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        assert signal.signal(signal.SIGHUP, before) is (signal.SIG_IGN if ignored else signal.SIG_DFL)
