"""From data to prediction through the commands a user types, on a handful of iterations."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.workflows.demo.demonstration import EPOCHS

# a third of the whole suite's time; `make test` trains and compares through the commands in test_real_sweep.py
pytestmark = [pytest.mark.slow, pytest.mark.nightly]

SCRIPTS = Path(sysconfig.get_path("scripts"))


def command(*arguments: str, root: Path | None = None) -> str:
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    variables = {} if root is None else {name: str(root / name) for name in names}
    environment = {**os.environ, **variables, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [str(SCRIPTS / arguments[0]), *arguments[1:]], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "out"
    output = command("nnunet-kd", "demo", "--output", str(root), "--iterations", "10")
    assert "student with DCD" in output
    return root


def model(root: Path, trainer: str) -> Path:
    return root / "nnUNet_results" / "Dataset999_Phantom" / f"{trainer}__nnUNetPlans__3d_fullres"


def test_demonstration_leaves_what_it_says(demonstration: Path) -> None:
    assert (demonstration / "demo.png").stat().st_size > 20_000
    for name in ("teacher", "student", "student_with_DCD"):
        assert len(list((demonstration / "predictions" / name).glob("head_*.nii.gz"))) == 4
    for trainer in ("nnUNetTrainerStudent", "nnUNetTrainerDCD"):
        plans = json.loads((model(demonstration, trainer) / "plans.json").read_text())
        features = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
        assert features == [8, 16, 32, 64]
        fold = model(demonstration, trainer) / "fold_0"
        for file in ("distillation.png", "progress.png", "distillation_settings.yaml", "validation/summary.json"):
            assert (fold / file).is_file()
    checkpoint = torch.load(
        model(demonstration, "nnUNetTrainerDCD") / "fold_0" / "checkpoint_final.pth", weights_only=False
    )
    assert len(checkpoint[ENTRY]["history"]) == EPOCHS
    assert len(checkpoint[ENTRY]["settings"]["teacher"]["sha256"]) == 64


def test_continue_validate_and_probabilities(demonstration: Path) -> None:
    dcd = ("999", "3d_fullres", "0", "-tr", "nnUNetTrainerDCD", "-device", "cpu")
    fold = model(demonstration, "nnUNetTrainerDCD") / "fold_0"
    before = json.loads((fold / "validation" / "summary.json").read_text())["mean"]
    command("nnUNetv2_train", *dcd, "--val", "--npz", root=demonstration)
    assert json.loads((fold / "validation" / "summary.json").read_text())["mean"] == before
    assert len(list((fold / "validation").glob("*.npz"))) == 2
    longer = ("-m", "dcd", "-device", "cpu", "--c", "--set", f"epochs={EPOCHS + 1}")
    output = command("nnunet-kd", "train", "999", "3d_fullres", "0", *longer, root=demonstration)
    started = re.findall(r": Epoch ([0-9]+)\s*$", output, re.MULTILINE)
    assert started == [str(EPOCHS)]
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == EPOCHS + 1
    assert len(checkpoint[ENTRY]["history"]) == EPOCHS + 1


def test_weighing_measures_on_real_batches_and_leaves_nothing(demonstration: Path) -> None:
    before = sorted(demonstration.rglob("*"))
    options = ("-m", "kd", "--set", "objectives.dcd.weight=0.05", "--set", "objectives.cwd.weight=3", "--batches", "2")
    output = command(
        "nnunet-kd",
        "weigh",
        "999",
        "3d_fullres",
        "0",
        "-device",
        "cpu",
        "--set",
        "seed=1",
        "--set",
        "start=random",  # beside which DCD at the paper's weight hardly counts
        *options,
        root=demonstration,
    )
    rows = {cells[0]: cells for line in output.splitlines() if len(cells := line.strip("│ ").split("│")) == 6}
    shares = {name.strip(): float(cells[2]) for name, cells in rows.items()}
    assert shares.keys() == {"dcd", "cwd"}
    assert shares["cwd"] > 10 * shares["dcd"] > 0
    assert sorted(demonstration.rglob("*")) == before


def test_pretrained_weights_and_a_named_plan(demonstration: Path) -> None:
    command("nnunet-kd", "plan", "999", root=demonstration)
    weights = model(demonstration, "nnUNetTrainerStudent") / "fold_0" / "checkpoint_final.pth"
    output = command(
        "nnunet-kd", "train", "999", "3d_fullres", "0", "-m", "dcd", "-p", "nnUNetPlans_r4", "-device", "cpu",
        "-pretrained_weights", str(weights), "--set", "epochs=1", "--set", "iterations_per_epoch=2",
        "--set", "validation_iterations=1", root=demonstration,
    )  # fmt: skip
    assert "Loading pretrained weights" in output
    trained = demonstration / "nnUNet_results" / "Dataset999_Phantom" / "nnUNetTrainerDCD__nnUNetPlans_r4__3d_fullres"
    assert (trained / "fold_0" / "checkpoint_final.pth").is_file()
