"""A whole sweep: what is missing of it is trained here, or submitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nnunet_kd.system.files import check_output, write_atomically
from nnunet_kd.workflows.sweep import slurm
from nnunet_kd.workflows.sweep.description import DESCRIPTION_FILE, SweepDescription
from nnunet_kd.workflows.sweep.execution import Failure, train_all
from nnunet_kd.workflows.sweep.planned_run import PlannedRun, State
from nnunet_kd.workflows.sweep.runs import plan_sweep, sweep_folder


@dataclass(frozen=True)
class SweepEnd:
    """What became of a sweep.

    Attributes:
        folder: the sweep's.
        missing: how many runs were not done before.
        jobs: identifiers of submitted jobs, in order; ``None``: trained here, or nothing to do.
        failures: of the runs trained here.
        states: of all runs at the end; empty unless something was trained here.
    """

    folder: Path
    missing: int = 0
    jobs: tuple[str, ...] | None = None
    failures: tuple[Failure, ...] = ()
    states: tuple[State, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a run failed, here or in another process."""
        return bool(self.failures) or "failed" in self.states


def run_sweep(
    description: SweepDescription,
    show: Callable[[Path, Mapping[PlannedRun, State]], None],
    console: Console,
    dry_run: bool = False,
) -> SweepEnd:
    """Train or submit all runs that are not done; their table is shown before.

    Args:
        description: what to train; its device is there.
        show: told the sweep's folder and every run's state before anything is trained.
        console: for progress.
        dry_run: only show.

    Raises:
        NnunetKdError: everything that can be wrong with the description or its place, before the first training.
        Stopped: Ctrl-C; the same again continues.
    """
    if description.slurm is not None:
        slurm.check_parameters(description.slurm)
    runs = plan_sweep(description)
    folder = sweep_folder(description)
    states = {run: run.state() for run in runs}
    missing = [run for run, state in states.items() if state != "done"]
    for place in (folder, *(run.folder for run in missing)) if missing and not dry_run else ():
        check_output(place, "the sweep's folder", "Change its permissions, or set nnUNet_results to another folder.")
    show(folder, states)
    if dry_run or not missing:
        return SweepEnd(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / DESCRIPTION_FILE, lambda target: target.write(description.as_yaml()))
    if description.slurm is not None:
        waiting = [run for run in missing if states[run] != "running"]
        jobs = slurm.submit(waiting, description.slurm, folder / "submitit") if waiting else []
        return SweepEnd(folder, len(missing), tuple(str(job.job_id) for job in jobs))
    failures = train_all(missing, console)
    return SweepEnd(folder, len(missing), None, tuple(failures), tuple(run.state() for run in runs))
