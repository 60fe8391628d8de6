"""The script for a GPU, tried on the CPU at toy sizes: it goes through every part of it, and through no measured figure."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerator
import accelerator_summary
import pytest
import torch
from accelerator_extent import CARDIAC, Extent, real_extent, toy_extent
from accelerator_parts import PARTS
from accelerator_proof import CORE
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.run import run_training
from nnunetv2.utilities import find_objects

from nnunet_kd.nnunet.environment import trainer_names
from nnunet_kd.workflows.bench.loss import PERIODIZATION, PTWT, ZERO, stage_shapes
from nnunet_kd.workflows.bench.pair import BRATS2024, Shape

SCRIPT = Path(accelerator.__file__).with_suffix(".sh")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def extent(results: Path) -> Iterator[Extent]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_compile", "f")
        # nnU-Net's search through all its modules takes longer than what is tried here
        search = functools.cache(find_objects.recursive_find_trainer_class_by_name)
        for caller in (run_training, predict_from_raw_data, find_objects):
            patch.setattr(caller, "recursive_find_trainer_class_by_name", search)
        yield toy_extent(CPU, results / "work")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_holds(results: Path, extent: Extent, part: str) -> None:
    assert accelerator.run_part(part, results, extent, lambda line: None) == []
    rows = accelerator_summary.read_part(results, part)
    assert list(rows) == list(PARTS[part](extent))
    check = globals().get(f"check_{part}")
    if check is not None:
        check(rows)


def check_objectives(rows: dict[str, Any]) -> None:
    drawing = {"nnUNetTrainerFGBVD", "nnUNetTrainerFoPro", "nnUNetTrainerFoPro, exploring"}
    for name, row in rows.items():
        tuning = name == "nnUNetTrainerFreeKD, exploring"
        assert (row["gradient"] > 0) is not tuning
        assert bool(row["explored"]) is name.endswith("exploring")
        # the same device twice
        assert row["difference to the CPU"] == (None if name in drawing or tuning else 0)


def check_loss(rows: dict[str, Any]) -> None:
    assert set(rows["all stages, one sample, with ptwt"]["seconds"]) == {PTWT, ZERO, PERIODIZATION}
    assert rows["all stages, one sample, with ptwt"]["largest relative difference"] < 1e-4
    assert len(rows["all stages"]["shapes"]) == 3


def check_start(rows: dict[str, Any]) -> None:
    (row,) = rows.values()
    assert row["layers"] > 5
    assert row["finite"]


def check_trainers(rows: dict[str, Any]) -> None:
    assert {name.partition(",")[0] for name in rows} == set(trainer_names())
    assert all(len(row["losses"]) == 8 and row["finite"] and row["falling"] for row in rows.values())


def check_processes(rows: dict[str, Any]) -> None:
    (row,) = rows.values()
    assert row["same weights everywhere"]
    assert row["processes"] == 1


def check_steps(rows: dict[str, Any]) -> None:
    assert {"student step", "nnUNetTrainerDCD", "nnUNetTrainerSoft"} < set(rows["DCD and soft, BraTS 2024"]["seconds"])


def check_proof(rows: dict[str, Any]) -> None:
    objectives = {name: set(rows[f"ACDC: {name}"]["settings"]["objectives"]) for name in CORE}
    assert objectives["plain"] == objectives["inherited"] == set()
    assert objectives["random + DCD"] == objectives["inherited + DCD"] == {"dcd"}
    assert objectives["inherited + soft + DCD"] == {"soft", "dcd"}
    dcd = {name: rows[f"ACDC: {name}"]["settings"]["objectives"].get("dcd", {}) for name in CORE}
    told = {name: (one["weight"], one["every"], one["projection_start"]) for name, one in dcd.items() if one}
    best = (5, 4, "fitted")  # as proof-hippocampus.yaml has them
    assert told == {"random + DCD": (0.05, 1, "random"), "inherited + DCD": best, "inherited + soft + DCD": best}
    starts = {name: rows[f"BraTS 2024: {name}"]["settings"]["start"] for name in CORE}
    assert {name for name, start in starts.items() if start == "random"} == {"plain", "random + DCD"}


def test_summary_has_every_target_and_is_small(results: Path, extent: Extent) -> None:
    for part in ("loss", "steps"):
        accelerator.run_part(part, results, extent, lambda line: None)
    text = (results / "summary.md").read_text()
    assert len(accelerator_summary.targets(results)) == 4
    assert "## Does not hold\n\nNothing." in text
    assert "no figure below means anything" in text
    assert sum(path.stat().st_size for path in results.iterdir() if path.is_file()) < 2**18


def test_goes_on_where_it_stopped(tmp_path: Path, extent: Extent, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail() -> dict[str, Any]:
        calls.append("fails")
        raise RuntimeError("CUDA error\nand its rest")

    def measure() -> dict[str, Any]:
        calls.append("works")
        return {"loss": 1.0}

    monkeypatch.setitem(PARTS, "loss", lambda extent: {"fails": fail, "works": measure})
    told: list[str] = []
    assert accelerator.run_part("loss", tmp_path, extent, told.append) == ["fails: RuntimeError: CUDA error"]
    assert "- loss, fails: RuntimeError: CUDA error" in (tmp_path / "summary.md").read_text()
    accelerator.run_part("loss", tmp_path, extent, told.append)
    assert calls == ["fails", "works", "fails"]
    assert told == ["loss: fails", "loss: works", "loss: fails"]

    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps({**json.loads(machine.read_text()), "device": "another card"}))
    with pytest.raises(accelerator.SettingsError, match=r"another device \(another card; now cpu\)"):
        accelerator.run_part("loss", tmp_path, extent, told.append)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"finite": False}, "not finite"),
        ({"finite": True, "falling": False, "first": 1.0, "last": 2.0}, "does not fall"),
        ({"same weights everywhere": False}, "different weights"),
        ({"difference to the CPU": 0.1}, "differs from the CPU"),
        ({"waits": ["loss.py:3", "loss.py:3"]}, r"waits for the device at loss.py:3$"),
        ({"loss": 1.0, "gradient": 0.0}, "no gradient"),
    ],
)
def test_what_does_not_hold_is_said(figures: dict[str, Any], said: str) -> None:
    assert re.search(said, accelerator_summary.problem(figures) or "")


def test_script_lists_the_parts_in_their_order() -> None:
    text = SCRIPT.read_text()
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert re.search(r"^parts=\((.*)\)$", text, re.MULTILINE)[1].split() == list(PARTS)  # type: ignore[index]
    assert re.findall(r"^#   (\w+) ", text, re.MULTILINE) == list(PARTS)
    usage = subprocess.run(["bash", str(SCRIPT)], check=False, capture_output=True, text=True)
    assert usage.returncode == 2
    assert "Command: bash benchmarks/accelerator.sh RESULTS" in usage.stdout


def test_without_a_gpu_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accelerator.main(["loss", "--results", str(tmp_path)]) == 2
    assert "PyTorch sees no CUDA device here" in capsys.readouterr().err


def test_real_shapes_are_those_of_the_papers_and_of_the_proof(tmp_path: Path) -> None:
    extent = real_extent(CPU, tmp_path)
    assert extent.large.configuration["patch_size"] == [128, 160, 112]
    assert extent.cardiac.configuration["patch_size"] == [10, 96, 96]
    assert stage_shapes(Shape(BRATS2024))[0] == (2, 32, 128, 160, 112)
    assert stage_shapes(Shape(str(CARDIAC)), 1)[-1] == (1, 320, 5, 6, 6)
