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


def command(methods: str, seeds: str, *options: str) -> list[str]:
    settings = ("epochs=1", "iterations_per_epoch=2", "validation_iterations=1")
    given = [part for setting in settings for part in ("--set", setting)]
    return ["sweep", "998", "3d_fullres", "--methods", methods, "--seeds", seeds, "-device", "cpu", *given, *options]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "seeds"),
    [(("logits",), (1,)), pytest.param(("student", "logits"), (0, 1), marks=pytest.mark.nightly)],
)
def test_a_sweep_and_its_comparison(folders: Path, methods: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    teacher = write_everything()
    names, listed = ",".join(methods), ",".join(map(str, seeds))
    runs = len(methods) * len(seeds)
    run(*command(names, listed))
    sweep = folders / "nnUNet_results" / DATASET / "sweeps" / "3d_fullres"
    records = [RunRecord.model_validate_json(file.read_bytes()) for file in sweep.rglob("sweep_run.json")]
    assert {(record.variant, record.seed) for record in records} == {
        (variant, seed) for variant in methods for seed in seeds
    }
    assert all(record.state == "done" and record.epochs_trained == 1 for record in records)
    assert all(record.training_seconds > 0 for record in records)
    assert len({record.checkpoint_sha256 for record in records}) == runs
    logits = sweep / "logits" / "seed_1" / DATASET / "nnUNetTrainerLogits__nnUNetPlans__3d_fullres" / "fold_0"
    saved = torch.load(logits / "checkpoint_final.pth", weights_only=False)["nnunet_kd"]["settings"]
    assert saved["seed"] == 1
    assert saved["teacher"]["path"] == str(teacher.resolve())

    again = run(*command(names, listed, "--dry-run"))
    assert f"{runs} done" in again
    assert "1/1" in again

    output = folders / "comparison"
    compared = run("compare", "--sweep", str(sweep), "--reference", methods[0], "-np", "1", "-o", str(output))
    assert f"Seeds: {', '.join(map(str, seeds))}" in compared
    with (output / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows if row["class"] == "rim"] == ["teacher", *methods]
    assert {row["dice"] for row in rows if row["method"] == "teacher"} == {"1"}
    page = (output / "report.html").read_text()
    assert "Training time" in page
    assert "Hours per run" in (output / "tables.md").read_text()


@pytest.mark.slow
@pytest.mark.nightly
def test_a_sweep_from_pretrained_weights(folders: Path) -> None:
    write_everything()
    run(*command("student", "0"))
    sweep = folders / "nnUNet_results" / DATASET / "sweeps" / "3d_fullres"
    student = sweep / "student" / "seed_0" / DATASET / "nnUNetTrainerStudent__nnUNetPlans__3d_fullres"
    still = ("--name", "from-student", "--set", "learning_rate=1e-60", "-pretrained_weights", str(student))
    run(*command("student", "1", *still))
    (left,) = (sweep.parent / "from-student").rglob("checkpoint_final.pth")
    before, after = (
        torch.load(path, weights_only=False)["network_weights"] for path in (student / "fold_0" / left.name, left)
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "decoder.seg_layers.1.weight" in changed  # nnU-Net draws the segmentation layers anew
    assert not [name for name in changed if ".seg_layers." not in name]
