"""A sweep's runs as a SLURM array, through submitit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_kd.errors import MissingRequirement, RunFailed, SettingsError
from nnunet_kd.nnunet.environment import required_folder
from nnunet_kd.system.requirements import require
from nnunet_kd.workflows.sweep.execution import TrainedElsewhere, train
from nnunet_kd.workflows.sweep.planned_run import PlannedRun
from nnunet_kd.workflows.sweep.subprocesses import NNUNET_KD

SHARED = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "name", "stderr_to_stdout")
"""submitit's names that every cluster understands; ``nodes`` and ``tasks_per_node`` are one, as a run is one process."""
CLUSTERS = ("slurm", "local")
MOST_TIMEOUTS = 1000
"""After how many time limits a job is given up; submitit's own 3 would end a training of days on short limits."""


class TrainJob:
    """What a job of the array does; when its time is up or it is preempted, SLURM starts it again and it continues."""

    def __call__(self, run: PlannedRun, variables: Mapping[str, str], program: Sequence[str]) -> None:
        """Train one run.

        Args:
            run: which.
            variables: nnU-Net's, as they were where the sweep was submitted.
            program: see :func:`nnunet_kd.workflows.sweep.execution.train`.

        Raises:
            RunFailed: the run failed, so that SLURM shows the job as failed.
        """
        os.environ.update(variables)
        try:
            failure = train(run, lambda line: print(line, end="", flush=True), program)
        except TrainedElsewhere as elsewhere:
            print(f"{elsewhere}; left to it.")
            return
        if failure is not None:
            raise RunFailed(f"{run} {failure.reason}.")

    def checkpoint(self, *arguments: Any) -> Any:
        """Asked by submitit for what is to be started again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def check_parameters(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The cluster and submitit's parameters: shared names as they are, others as SLURM's own (``partition=gpu``).

    Raises:
        MissingRequirement: submitit is not installed.
        SettingsError: an unknown cluster or parameter, or no time limit.
    """
    own = _own_parameters()
    values = dict(given)
    cluster = values.pop("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise SettingsError(f"--slurm cluster={cluster}: there are {' and '.join(CLUSTERS)}.")
    if "timeout_min" not in values:
        raise SettingsError("--slurm needs a time limit in minutes, for example --slurm timeout_min=1440.")
    parameters = {}
    for key, value in values.items():
        name = key.removeprefix("slurm_")
        if name not in SHARED and name not in own:
            raise SettingsError(f"--slurm {key}: known are {', '.join(SHARED)}, and of SLURM {', '.join(own)}.")
        parameters[name if name in SHARED else f"slurm_{name}"] = value
    return cluster, parameters


def _own_parameters() -> list[str]:
    """SLURM's own names, as submitit lists them for itself.

    Raises:
        MissingRequirement: submitit is not installed.
    """
    return sorted(set(require("submitit").SlurmExecutor._valid_parameters()) - {"nodes", "ntasks_per_node", "time"})


def submit(
    runs: Sequence[PlannedRun], given: Mapping[str, Any], folder: Path, program: Sequence[str] = NNUNET_KD
) -> list[Any]:
    """Hand the runs to the cluster as one array; returns submitit's jobs without waiting for them.

    Args:
        runs: those that are to be trained.
        given: see :func:`check_parameters`.
        folder: for submitit's own files and the jobs' output.
        program: see :func:`nnunet_kd.workflows.sweep.execution.train`.

    Raises:
        MissingRequirement: submitit is not installed, or there is no SLURM here.
        SettingsError: see :func:`check_parameters`; or a value that submitit refuses.
    """
    cluster, parameters = check_parameters(given)
    from submitit import AutoExecutor

    variables = {name: str(required_folder(name).absolute()) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    try:
        executor = AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=MOST_TIMEOUTS)
        executor.update_parameters(**parameters)
    except RuntimeError as error:
        raise MissingRequirement(f"the runs cannot be submitted: {error}. Run this where `sbatch` works.") from error
    except (AssertionError, NameError, ValueError, TypeError) as error:
        raise SettingsError(f"--slurm: {error}.") from error
    jobs: list[Any] = executor.map_array(TrainJob(), runs, [variables] * len(runs), [tuple(program)] * len(runs))
    return jobs
