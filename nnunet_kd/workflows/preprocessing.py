"""nnU-Net's preprocessing of many cases, safe to stop and to run again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_kd.errors import DataError, MissingRequirement
from nnunet_kd.nnunet.datasets import default_processes, preprocess_case
from nnunet_kd.system.files import folder_beside
from nnunet_kd.system.processes import as_finished, worker_pool
from nnunet_kd.volumes.placing import move_all
from nnunet_kd.volumes.reading import reading, whole_numbers

WORTH_PROCESSES = 60.0
"""Seconds of work in one process above which several are started, each of which imports PyTorch first."""


@dataclass(frozen=True)
class Arrays:
    """One case to preprocess.

    Attributes:
        case: its name.
        images: one file a channel.
        segmentation: ``None``: a dummy is stored.
        folder: of the arrays.
    """

    case: str
    images: tuple[Path, ...]
    segmentation: Path | None
    folder: Path


def preprocess_arrays(
    todo: Sequence[Arrays],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    show: Callable[[float, float, str], Any],
) -> None:
    """nnU-Net's preprocessing of cases, in several processes if the first one says that this is worth it.

    Args:
        todo: the cases.
        plans, configuration, dataset_json: of the network.
        show: told how many are done, of how many, and which is next.

    Raises:
        DataError: an image cannot be preprocessed.
        MissingRequirement: the disk refused.
    """
    if not todo:
        return
    run = partial(_preprocess_one, plans=plans, configuration=configuration, dataset_json=dataset_json)
    show(0, len(todo), todo[0].case)
    began = time.monotonic()
    run(todo[0])
    show(1, len(todo), "")
    alone = (time.monotonic() - began) * (len(todo) - 1)
    workers = default_processes() if alone > WORTH_PROCESSES else 1
    with worker_pool(workers) as pool:
        _preprocess_rest(run, todo[1:], pool, show)


def _preprocess_rest(
    run: Callable[[Arrays], None],
    todo: Sequence[Arrays],
    pool: ProcessPoolExecutor | None,
    show: Callable[[float, float, str], Any],
) -> None:
    if pool is None:
        for place, one in enumerate(todo):
            run(one)
            show(place + 2, len(todo) + 1, one.case)
        return
    for count, _ in enumerate(as_finished(run, todo, pool, "preprocessing", shown=False)):
        show(count + 2, len(todo) + 1, "")


def _preprocess_one(one: Arrays, plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> None:
    """Into a folder beside, then renamed; the file that says that a case is there comes last."""
    with folder_beside(one.folder / one.case) as temporary:
        try:
            with reading(f"case {one.case} ({', '.join(path.name for path in one.images)})", "cannot be preprocessed"):
                preprocess_case(
                    one.images, one.segmentation, plans, configuration, dataset_json, temporary / one.case,
                    lambda labels: whole_numbers(labels)[0],
                )  # fmt: skip
        except DataError as error:
            if shutil.disk_usage(temporary).free < 1 << 20:  # Blosc2 does not say that a disk is full
                raise MissingRequirement(
                    f"the disk of {one.folder} is full. Free space, then run the same again."
                ) from error
            raise
        move_all(temporary, one.folder, last=f"{one.case}.pkl")
