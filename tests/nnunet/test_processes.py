"""Errors of ours that were raised in a process that nnU-Net started."""

from __future__ import annotations

import pytest
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessRaisedException

from nnunet_kd.errors import TrainingStopped
from nnunet_kd.nnunet.processes import errors_of_processes

MESSAGE = "the memory is full.\nIt was: 3 of 4"


def _stop(rank: int) -> None:
    raise TrainingStopped(MESSAGE)


def _fail(rank: int) -> None:
    raise ValueError("nnunet_kd.errors.TrainingStopped is not meant")


def test_an_error_of_ours_is_itself_again() -> None:
    with pytest.raises(TrainingStopped) as caught, errors_of_processes():
        mp.spawn(_stop, nprocs=1)
    assert str(caught.value) == MESSAGE


def test_others_stay_as_they_are() -> None:
    with pytest.raises(ProcessRaisedException, match="is not meant"), errors_of_processes():
        mp.spawn(_fail, nprocs=1)
