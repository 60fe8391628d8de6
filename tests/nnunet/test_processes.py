"""Errors of ours that were raised in a process that nnU-Net started."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessRaisedException

from nnunet_kd.errors import ModelError, TrainingStopped
from nnunet_kd.nnunet.processes import errors_of_processes

MESSAGE = "the memory is full.\nIt was: 3 of 4"


def _stop(rank: int) -> None:
    raise TrainingStopped(MESSAGE)


def _stop_because_of_another(rank: int) -> None:
    try:
        raise ModelError("the cause")
    except ModelError as error:
        raise TrainingStopped(MESSAGE) from error


def _fail(rank: int) -> None:
    raise ValueError("nnunet_kd.errors.TrainingStopped is not meant")


@pytest.mark.parametrize("stop", [_stop, _stop_because_of_another])
def test_an_error_of_ours_is_itself_again(stop: Callable[[int], None]) -> None:
    with pytest.raises(TrainingStopped) as caught, errors_of_processes():
        mp.spawn(stop, nprocs=1)
    assert str(caught.value) == MESSAGE


def test_others_stay_as_they_are() -> None:
    with pytest.raises(ProcessRaisedException, match="is not meant"), errors_of_processes():
        mp.spawn(_fail, nprocs=1)
