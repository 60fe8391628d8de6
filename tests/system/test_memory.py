"""Resident memory of a process, now and at its highest."""

from __future__ import annotations

import sys

import pytest

from nnunet_kd.system.memory import forget_peak, peak_resident_bytes, resident_bytes

MANY = 64 << 20


def test_the_peak_stays_when_memory_is_given_back_until_it_is_forgotten() -> None:
    before = resident_bytes()
    block = bytearray(MANY)
    assert resident_bytes() - before > MANY / 2
    peak = peak_resident_bytes()
    assert peak >= before + MANY / 2
    del block
    assert peak_resident_bytes() > peak - MANY / 2
    if sys.platform != "linux":
        pytest.skip("only Linux forgets a peak")
    assert forget_peak()
    assert peak_resident_bytes() < peak - MANY / 2
