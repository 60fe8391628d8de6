"""What version 0.1.0 left on disk still resumes: a checkpoint with every objective, and an interrupted sweep."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from nnunet_kd.cli.compare import compare
from nnunet_kd.cli.sweep import sweep
from nnunet_kd.errors import SettingsError
from nnunet_kd.models.checkpoint import ENTRY, read_checkpoint
from nnunet_kd.workflows.sweep.record import read_record
from tests.training.tiny_trainer import close_epoch, steps, trainer

FIXTURE = Path(__file__).with_name("fixtures") / "0.1.0"
MADE_IN = "/tmp/nnunet-kd-0.1.0"
DATASET = "Dataset998_Tiny"
COMMAND = ["sweep", "998", "3d_fullres", "--methods", "student,dcd", "-device", "cpu"]
for setting in ("epochs=2", "iterations_per_epoch=2", "validation_iterations=1", "save_every=1"):
    COMMAND += ["--set", setting]
AS_BEFORE = ("--recipe", "paper")
"""Since then DCD starts inside its teacher, with another weight, and an old run is not taken for such a one."""
ENVIRONMENT = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "PYTHONWARNINGS": "ignore"}
app = typer.Typer(pretty_exceptions_enable=False)
app.command("sweep")(sweep)
app.command("compare")(compare)


@pytest.fixture
def old(folders: Path) -> Path:
    """nnU-Net's folders as version 0.1.0 left them, in another place."""
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        shutil.copytree(FIXTURE / name, folders / name, dirs_exist_ok=True)
    for path in [*folders.rglob("*.yaml"), *folders.rglob("sweep_run.json")]:
        path.write_text(path.read_text().replace(MADE_IN, str(folders)))
    return folders


def run(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", **ENVIRONMENT}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output[-3000:]
    return result.output


def objectives_as_options(settings: dict[str, Any]) -> list[str]:
    return [f"objectives.{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in settings.items()]


def test_a_checkpoint_with_every_objective_resumes(old: Path) -> None:
    path = FIXTURE / "checkpoint_every_objective.pth"
    saved = read_checkpoint(path)[ENTRY]
    assert len(saved["settings"]["objectives"]) == 9
    plans = json.loads((old / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((old / "nnUNet_preprocessed" / DATASET / "dataset.json").read_text())
    options = [*objectives_as_options(saved["settings"]["objectives"]), "ema=0.9", "seed=1"]
    made = trainer("nnUNetTrainerKD", plans, *options, dataset=dataset_json)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        made.load_checkpoint(str(path))
        made.prepare_distillation()
        made.on_train_epoch_start()
    distillation = made.supervision.distillation.state_dict()
    assert list(distillation) == list(saved["distillation"])
    # the masks of FreeKD were another method's then, and are tuned anew; everything else goes on
    assert told.getvalue().count("WARNING") == 1
    assert "nothing that fits these, which start anew: freekd (prompts)." in told.getvalue()
    assert made.supervision.distillation.all_objectives()["freekd"].is_preparing()
    for name, value in saved["distillation"].items():
        if isinstance(value, torch.Tensor) and not name.startswith("objectives.freekd.prompts"):
            assert torch.equal(distillation[name], value), name
    learned = [parameter for parameter in made.supervision.distillation.parameters() if parameter.requires_grad]
    assert len(saved["optimizer"]) == len(learned)
    for parameter, before in zip(learned, saved["optimizer"].values(), strict=True):
        assert torch.equal(made.optimizer.state[parameter]["momentum_buffer"], before["momentum_buffer"])
    weights = made.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in saved["training_weights"].items())
    assert made.history.epochs == saved["history"]
    assert len(saved["history"]) == made.current_epoch == 1
    assert all(torch.isfinite(torch.tensor(steps(made, 2))))
    close_epoch(made)
    # one step of tuning, as its settings say, and one of distillation
    assert made.history.epochs[1].keys() == saved["history"][0].keys()
    assert {"freekd_exploration/task", "freekd"} <= made.history.epochs[1].keys()


@pytest.mark.nightly
def test_an_interrupted_sweep_goes_on_and_is_compared(old: Path) -> None:
    folder = old / "nnUNet_results" / DATASET / "sweeps" / "3d_fullres"
    dcd = folder / "dcd" / "seed_0" / DATASET / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0"
    student = folder / "student" / "seed_0" / DATASET / "nnUNetTrainerStudent__nnUNetPlans__3d_fullres" / "fold_0"
    before = (student / "checkpoint_final.pth").read_bytes()
    first = read_checkpoint(dcd / "checkpoint_latest.pth")[ENTRY]["history"]
    with pytest.raises(
        SettingsError, match=r'start: there "random", asked for "teacher" \(.*older version; --recipe paper'
    ):
        run(*COMMAND, "--dry-run")
    states = run(*COMMAND, *AS_BEFORE, "--dry-run")
    assert "1 done, 1 failed" in states
    assert "1/2" in states
    run(*COMMAND, *AS_BEFORE)
    record = read_record(dcd)
    assert record is not None
    assert (record.state, record.starts, record.epochs_trained) == ("done", 2, 2)
    history = read_checkpoint(dcd / "checkpoint_final.pth")[ENTRY]["history"]
    assert len(history) == 2
    assert history[0] == first[0]
    assert (student / "checkpoint_final.pth").read_bytes() == before

    raw = Path(os.environ["nnUNet_preprocessed"], DATASET, "gt_segmentations")
    output = old / "comparison"
    compared = run(
        "compare", "--sweep", str(folder), "--reference", "student", "--ground-truth", str(raw), "-np", "1", "-o", str(output)
    )  # fmt: skip
    assert "dcd" in compared
    assert (output / "report.html").is_file()
