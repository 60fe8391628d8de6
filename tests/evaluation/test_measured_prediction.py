"""The program that predicts for ``nnunet-kd conform`` measures its own memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from nnunet_kd.system.memory import resident_bytes


def test_the_memory_of_a_large_parent_is_not_its_own() -> None:
    held = np.ones(2**26, np.uint8)
    code = "from nnunet_kd.evaluation.measured_prediction import peak_bytes; print(peak_bytes())"
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert resident_bytes() > held.nbytes > peak > 2**20
