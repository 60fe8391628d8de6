"""A real sweep on data as small as nnU-Net takes it, and its comparison."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from typer.testing import CliRunner

from nnunet_kd.cli.compare import compare
from nnunet_kd.cli.sweep import sweep as sweep_command
from nnunet_kd.workflows.bench.pair import write_untrained_teacher
from nnunet_kd.workflows.sweep.record import RunRecord
from tests.conftest import make_plans
from tests.evaluation.helpers import labels, write_image

DATASET = "Dataset998_Tiny"
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "rim": 1, "core": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
CASES = ("case_0", "case_1", "case_2")
ENVIRONMENT = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "PYTHONWARNINGS": "ignore"}
app = typer.Typer(pretty_exceptions_enable=False)
app.command("sweep")(sweep_command)
app.command("compare")(compare)


def run(*arguments: str) -> str:
    """Output of a command in this process; the trainings are processes of their own."""
    result = CliRunner(env={"COLUMNS": "200", **ENVIRONMENT}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output[-3000:]
    return result.output


def write_everything() -> Path:
    """Raw and preprocessed data of three cases; returns an untrained teacher with predictions."""
    raw = Path(os.environ["nnUNet_raw"], DATASET)
    for seed, name in enumerate(CASES):
        segmentation = labels(seed, shape=(16, 16, 16))
        image = segmentation * 50.0 + np.random.default_rng(seed).normal(size=segmentation.shape)
        write_image(raw / "labelsTr" / f"{name}.nii.gz", segmentation, spacing=(1.0, 1.0, 1.0))
        write_image(raw / "imagesTr" / f"{name}_0000.nii.gz", image.astype(np.float32), spacing=(1.0, 1.0, 1.0))
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON))
    plans = {**make_plans(), "foreground_intensity_properties_per_channel": {"0": {}}}
    teacher = write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    preprocessed = Path(os.environ["nnUNet_preprocessed"], DATASET)
    shutil.rmtree(preprocessed / "nnUNetPlans_3d_fullres")
    (preprocessed / "dataset_fingerprint.json").write_text("{}")
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": CASES[1:], "val": CASES[:1]}]))
    preprocess_dataset(998, "nnUNetPlans", ("3d_fullres",), (1,))
    validation = teacher / "fold_0" / "validation"
    validation.mkdir()
    shutil.copy(raw / "labelsTr" / "case_0.nii.gz", validation)
    (validation / "summary.json").write_text("{}")
    return teacher


@pytest.mark.slow
def test_two_methods_two_seeds(folders: Path) -> None:
    teacher = write_everything()
    settings = ("epochs=1", "iterations_per_epoch=2", "validation_iterations=1")
    command = ["sweep", "998", "3d_fullres", "--methods", "student,logits", "--seeds", "0,1", "-device", "cpu"]
    command += [part for setting in settings for part in ("--set", setting)]
    run(*command)
    sweep = folders / "nnUNet_results" / DATASET / "sweeps" / "3d_fullres"
    records = [RunRecord.model_validate_json(file.read_bytes()) for file in sweep.rglob("sweep_run.json")]
    assert {(record.variant, record.seed) for record in records} == {
        (variant, seed) for variant in ("student", "logits") for seed in (0, 1)
    }
    assert all(record.state == "done" and record.epochs_trained == 1 for record in records)
    assert all(record.training_seconds > 0 for record in records)
    assert len({record.checkpoint_sha256 for record in records}) == 4
    logits = sweep / "logits" / "seed_1" / DATASET / "nnUNetTrainerLogits__nnUNetPlans__3d_fullres" / "fold_0"
    saved = torch.load(logits / "checkpoint_final.pth", weights_only=False)["nnunet_kd"]["settings"]
    assert saved["seed"] == 1
    assert saved["teacher"]["path"] == str(teacher.resolve())

    again = run(*command, "--dry-run")
    assert "4 done" in again
    assert "1/1" in again

    output = folders / "comparison"
    compared = run("compare", "--sweep", str(sweep), "--reference", "student", "-np", "1", "-o", str(output))
    assert "Seeds: 0, 1 (averaged per case" in compared
    with (output / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows if row["class"] == "rim"] == ["teacher", "student", "logits"]
    assert {row["dice"] for row in rows if row["method"] == "teacher"} == {"1"}
    page = (output / "report.html").read_text()
    assert "Training time" in page
    assert "Hours per run" in (output / "tables.md").read_text()

    student = sweep / "student" / "seed_0" / DATASET / "nnUNetTrainerStudent__nnUNetPlans__3d_fullres"
    still = [*command, "--name", "from-student", "--methods", "student", "--seeds", "1", "--set", "learning_rate=1e-60"]
    run(*still, "-pretrained_weights", str(student))
    (left,) = (sweep.parent / "from-student").rglob("checkpoint_final.pth")
    before, after = (
        torch.load(path, weights_only=False)["network_weights"] for path in (student / "fold_0" / left.name, left)
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "decoder.seg_layers.1.weight" in changed  # nnU-Net draws the segmentation layers anew
    assert not [name for name in changed if ".seg_layers." not in name]
