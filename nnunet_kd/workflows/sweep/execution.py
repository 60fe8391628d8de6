"""One run as a subprocess of ``nnunet-kd train``, and all of a sweep's runs one after another."""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from filelock import Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.files import sha256
from nnunet_kd.system.sessions import handling_ends
from nnunet_kd.workflows.sweep.planned_run import PlannedRun
from nnunet_kd.workflows.sweep.record import (
    EPOCH_FINISHED,
    EPOCH_STARTED,
    LOG_FILE,
    RunRecord,
    RunState,
    read_record,
    software,
)
from nnunet_kd.workflows.sweep.subprocesses import NNUNET_KD, running_training

LAST_LINES = 15
_LOCK_WAIT = 5.0


@dataclass(frozen=True)
class Failure:
    """A run that did not end as it should.

    Attributes:
        run: which.
        reason: in words.
        lines: the end of its output.
    """

    run: PlannedRun
    reason: str
    lines: tuple[str, ...] = ()


class TrainedElsewhere(Exception):
    """Another process trains this very run."""


def train(
    run: PlannedRun, on_line: Callable[[str], None] = lambda line: None, program: Sequence[str] = NNUNET_KD
) -> Failure | None:
    """Train a run to its end, or what is missing of it, and keep its record.

    A run that is done is left alone. Whatever interrupts this function (Ctrl-C, a scheduler's signal) first ends the training,
    which can then be continued.

    Args:
        run: from :func:`nnunet_kd.workflows.sweep.runs.plan_sweep`.
        on_line: told every line of the training's output.
        program: what the run's arguments are given to.

    Returns:
        What went wrong; ``None`` if nothing did.

    Raises:
        TrainedElsewhere: the run's lock is held.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        with run.lock(_LOCK_WAIT):
            return None if run.done else _train_locked(run, on_line, program)
    except Timeout as error:
        raise TrainedElsewhere(f"{run} is being trained by another process") from error


def _train_locked(run: PlannedRun, on_line: Callable[[str], None], program: Sequence[str]) -> Failure | None:
    arguments = [*run.arguments, *_how_to_start(run)]
    before = read_record(run.folder)
    told = ["nnunet-kd", *arguments]
    record = RunRecord(
        variant=run.variant,
        method=run.method,
        fold="all" if run.fold == "all" else int(run.fold),
        seed=run.seed,
        # what only validates says nothing of how the run was trained
        command=before.command if run.trained and before is not None else told,
        device=run.device,
        software=software(),
        starts=1 + (before.starts if before else 0),
        epochs_trained=before.epochs_trained if before else 0,
        training_seconds=before.training_seconds if before else 0.0,
        command_seconds=before.command_seconds if before else 0.0,
        pretrained_sha256=run.pretrained.sha256 if run.pretrained else None,
    )
    record.write(run.folder)
    last: deque[str] = deque(maxlen=LAST_LINES)
    seconds_before, started = record.command_seconds, time.monotonic()

    def seconds() -> float:
        return round(seconds_before + time.monotonic() - started, 2)

    try:
        with (run.folder / LOG_FILE).open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"$ nnUNet_results={shlex.quote(str(run.results))} {shlex.join(told)}\n")
            with running_training([*program, *arguments], run.results) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    last.append(line.rstrip())
                    if match := EPOCH_FINISHED.search(line):
                        record = record.model_copy(
                            update={
                                "epochs_trained": record.epochs_trained + 1,
                                "training_seconds": round(record.training_seconds + float(match[1]), 2),
                                "command_seconds": seconds(),
                            }
                        )
                        record.write(run.folder)
                    on_line(line)
            code = process.returncode
    except BaseException:
        # it may come between the run's last file and its process's end: then nothing is left to continue
        _write_end(record, run, "done" if run.done else "interrupted", None, seconds())
        raise
    state: RunState = "done" if code == 0 and run.done else "failed"
    _write_end(record, run, state, code, seconds())
    if code != 0:
        reason = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        return Failure(run, reason, tuple(last))
    return (
        None
        if run.done
        else Failure(run, "ended without checkpoint_final.pth and validation/summary.json", tuple(last))
    )


def _write_end(record: RunRecord, run: PlannedRun, state: RunState, code: int | None, seconds: float) -> None:
    record.model_copy(
        update={
            "state": state,
            "exit_code": code,
            "command_seconds": seconds,
            "checkpoint_sha256": sha256(run.folder / FINAL) if run.trained else None,
        }
    ).write(run.folder)


def _how_to_start(run: PlannedRun) -> list[str]:
    if run.trained:
        return ["--val"]
    # nnU-Net refuses both at once; without a checkpoint --c starts a new training
    if run.pretrained is not None and not any(run.folder.glob("checkpoint_*.pth")):
        return ["-pretrained_weights", str(run.pretrained.path)]
    return ["--c"]


class Stopped(Exception):
    """Somebody wants the sweep to stop: Ctrl-C, or a signal to end."""


def train_all(runs: Sequence[PlannedRun], console: Console, program: Sequence[str] = NNUNET_KD) -> list[Failure]:
    """Train one after another, under a progress bar; a run that fails does not stop the others.

    Another process may work on the same list at the same time: what it trains is left to it, unless it stops before the end.

    Args:
        runs: those that are to be trained.
        console: for progress and messages.
        program: see :func:`train`.

    Returns:
        What failed.

    Raises:
        Stopped: after the training under way has ended.
    """
    failures: list[Failure] = []
    missing = {run: max(1, run.epochs - run.epochs_finished()) for run in runs}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with (
        _stop_signals(),
        Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=3600,
        ) as progress,
    ):
        whole = progress.add_task("sweep", total=sum(missing.values()), state="")
        handled, waiting = 0, list(runs)
        while waiting:
            left = []
            for number, run in enumerate(waiting, 1):
                progress.update(whole, state=f"run {number} of {len(waiting)}")
                name = escape(str(run))
                one = progress.add_task(name, total=missing[run], state="starting")
                try:
                    failure = train(run, _EpochWatch(progress, one, whole, run.epochs), program)
                except TrainedElsewhere:
                    left.append(run)
                    outcome = f"[yellow]left[/]   {name}: another process trains it"
                else:
                    outcome = f"[green]done[/]   {name}"
                    if failure is not None:
                        failures.append(failure)
                        outcome = f"[red]failed[/] {name}: {escape(failure.reason)}"
                console.print(outcome, highlight=False)
                handled += missing[run]
                progress.update(whole, completed=handled)
                progress.remove_task(one)
            waiting = [run for run in left if run.state() == "todo"]  # what the other process gave up
            handled -= sum(missing[run] for run in waiting)
    return failures


class _EpochWatch:
    """Turns a training's output into progress."""

    def __init__(self, progress: Progress, one: TaskID, whole: TaskID, epochs: int) -> None:
        self._progress, self._one, self._whole, self._epochs = progress, one, whole, epochs
        self._epoch = 0

    def __call__(self, line: str) -> None:
        if match := EPOCH_STARTED.search(line):
            self._epoch = int(match[1]) + 1
            self._progress.update(self._one, state=f"epoch {self._epoch} of {self._epochs}")
        elif EPOCH_FINISHED.search(line):
            self._progress.advance(self._one)
            self._progress.advance(self._whole)
        elif "Training done" in line:
            self._progress.update(self._one, state="validating")


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Ctrl-C and a request to end become :class:`Stopped`; a closed terminal counts as one, unless it is ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    with handling_ends(stop):
        yield
