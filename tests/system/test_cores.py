"""How many threads a CPU training takes."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from nnunet_kd.nnunet import datasets
from nnunet_kd.system import cores
from nnunet_kd.workflows.shrink.request import loader_variables

MODULES = [cores, *([importlib.import_module("nnunet_kd_runtime.cores")] if find_spec("nnunet_kd_runtime") else [])]
"""The runtime has its own."""


def _machine(monkeypatch: pytest.MonkeyPatch, control_groups: Path, affinity: int) -> None:
    """A machine of 64 cores, of which this process may use ``affinity``, and what its control groups leave of them."""
    for module in MODULES:
        monkeypatch.setattr(module, "CONTROL_GROUPS", control_groups)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu.max": "not a number"}, 8),
    ],
)
def test_affinity_and_control_group(
    files: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    _machine(monkeypatch, tmp_path, affinity=8)
    assert [module.usable_cores() for module in MODULES] == [wanted] * len(MODULES)
    assert cores.computing_threads({}) == wanted
    assert cores.computing_threads({"OMP_NUM_THREADS": "5,1"}) == 5
    assert cores.computing_threads({"OMP_NUM_THREADS": "many"}) == wanted


def test_processes_are_no_more_than_our_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "default_num_processes", 16)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    _machine(monkeypatch, tmp_path, affinity=8)
    assert datasets.default_processes() == 8
    assert loader_variables("cpu") == {"nnUNet_n_proc_DA": "2"}
    _machine(monkeypatch, tmp_path, affinity=1)
    assert datasets.default_processes() == 1
    assert loader_variables("cpu") == {"nnUNet_n_proc_DA": "1"}
