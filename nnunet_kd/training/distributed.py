"""Several processes: joined as torchrun says, and nnU-Net's trainer fitted to the device that each of them has.

Communication, launching and fault handling are PyTorch's. nnU-Net takes a process's global rank for the number of its GPU,
which holds on one machine only, and wraps networks for GPUs only; both are corrected here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nnunet_kd.errors import NnunetKdError, PlanError, SettingsError

LONGEST_WAIT = timedelta(days=1)
"""How long processes wait for what :func:`in_first_process` computes."""
Result = TypeVar("Result")


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized()


def launched_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextlib.contextmanager
def process_group(device_type: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started (nccl between GPUs, gloo otherwise); yields this process's device.

    Raises:
        SettingsError: this machine has fewer GPUs than processes.
    """
    place = int(os.environ["LOCAL_RANK"])
    device = torch.device(device_type)
    if device_type == "cuda":
        if place >= torch.cuda.device_count():
            raise SettingsError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes here, but there are "
                f"{torch.cuda.device_count()} GPUs. Give --nproc-per-node the number of GPUs."
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def process_device(wanted: torch.device) -> torch.device:
    """The device of this one of several processes; of GPUs the one that has its number on its own machine."""
    if wanted.type != "cuda":
        return wanted
    place = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", dist.get_rank() if place is None else int(place))


def gather(value: Any) -> list[Any]:
    """The values of all processes in the order of ranks; of a single process its own."""
    if not is_distributed():
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def in_first_process(compute: Callable[[], Result]) -> Result | None:
    """Compute something in the first process, while the others wait for as long as that takes.

    Collectives of nccl give up after 10 minutes, those of gloo after 30. So this waits in a gloo group of its own, for up to
    :data:`LONGEST_WAIT`. A first process that dies closes its connections, and the others fail at once.

    Args:
        compute: called in the first of several processes, or in the only one.

    Returns:
        What ``compute`` returned; ``None`` in the other processes.

    Raises:
        NnunetKdError: what ``compute`` raised, in every process.
    """
    if not is_distributed():
        return compute()
    group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)  # connects all before the first one is busy
    result: Result | None = None
    problem: list[NnunetKdError | None] = [None]
    try:
        if dist.get_rank() == 0:
            try:
                result = compute()
            except NnunetKdError as error:
                problem = [error]
        dist.broadcast_object_list(problem, src=0, group=group)
    finally:
        dist.destroy_process_group(group)
    if problem[0] is not None:
        raise problem[0]
    return result


def check_batch_size(batch_size: int) -> None:
    """Raise a PlanError unless every process gets at least one sample of a batch."""
    if batch_size < dist.get_world_size():
        raise PlanError(
            f"a batch of {batch_size} cannot be divided among {dist.get_world_size()} processes. Start at most {batch_size} "
            f"(-num_gpus, --nproc-per-node), or plan with a larger batch (batch_size in the plan's configuration)."
        )


def check_processes_agree(epoch: int, restored: bool) -> None:
    """Raise a SettingsError unless all processes start from the same epoch, and all or none from a checkpoint."""
    starts = gather(f"epoch {epoch}{'' if restored else ' without a checkpoint'}")
    if len(set(starts)) > 1:
        raise SettingsError(
            f"the processes would start differently ({', '.join(starts)}, by rank), because they do not see the same "
            f"checkpoints. nnUNet_results and nnUNet_preprocessed must be folders that all machines share."
        )


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Lets the first process do what is within while the others wait, and then these."""
    if is_distributed() and dist.get_rank() > 0:
        dist.barrier()
    yield
    if is_distributed() and dist.get_rank() == 0:
        dist.barrier()
