"""Cases in processes."""

from __future__ import annotations

import os

import pytest

from nnunet_kd.errors import MissingRequirement
from nnunet_kd.system.processes import run_all, worker_pool


def square(number):
    return number**2


def test_one_worker_stays_in_this_process():
    seen = []
    with worker_pool(1) as pool:
        assert pool is None
        assert run_all(lambda case: seen.append(os.getpid()) or case, [3, 1, 2], pool, "x") == [3, 1, 2]
    assert set(seen) == {os.getpid()}


@pytest.mark.slow
def test_results_keep_their_order_and_a_dead_process_is_an_error_for_people():
    with worker_pool(2) as pool:
        assert run_all(square, list(range(6)), pool, "x") == [0, 1, 4, 9, 16, 25]
        with pytest.raises(MissingRequirement, match="measuring: a worker process ended"):
            run_all(os._exit, [1], pool, "measuring")
