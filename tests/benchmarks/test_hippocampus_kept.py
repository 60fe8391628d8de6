"""What is kept of the hippocampus sweeps' trainings, and of the teacher that their choices are made with."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hippocampus_keep
import hippocampus_teacher
import numpy as np
import pytest
import torch
from sweep_trainings import read_rows

from nnunet_kd.evaluation.calibration import MEASURES, Calibration
from nnunet_kd.evaluation.kept import read_kept
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import CASE_COLUMNS, Evaluation
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.models.folder import open_model
from nnunet_kd.nnunet.checkpoints import FINAL, LATEST
from nnunet_kd.workflows.comparison import CASES_BY_SEED

DATASET = "Dataset004_Hippocampus"


@pytest.fixture
def measured(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The sweep with everything that is read of a training made up; returns the checkpoint's entry of this package."""
    entry: dict[str, Any] = {"clipped_steps": [0.25, 0.75]}
    values = {name: np.ones((2, 1)) for name in CASE_COLUMNS[2:]}
    found = Evaluation(Path(), Path(), ("a", "b"), ("heart",), values, MetricOptions())
    trusted = Calibration(("a", "b"), ("heart",), {one.name: np.array([[0.125], [0.375]]) for one in MEASURES})
    record = SimpleNamespace(
        command=["nnunet-kd", "-t", f"{tmp_path}/x", f"maps={tmp_path}/preprocessed/y"],
        training_seconds=8.0,
        software={"nnunetv2": "2", "torch": "2"},
    )
    logged = {"train_losses": [0.5, 0.25], "mean_fg_dice": [0.1, 0.2]}
    monkeypatch.setattr(hippocampus_keep, "evaluate_folder", lambda *told, cases: found)
    monkeypatch.setattr(hippocampus_keep, "evaluate_probabilities", lambda *told: trusted)
    monkeypatch.setattr(hippocampus_keep, "read_record", lambda folder: record)
    monkeypatch.setattr(hippocampus_keep, "epoch_seconds", lambda folder: [3.0, 5.0])
    monkeypatch.setattr(
        hippocampus_keep, "read_checkpoint", lambda path, in_memory: {"nnunet_kd": entry, "logging": logged}
    )
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "preprocessed" / DATASET).mkdir(parents=True)
    (tmp_path / "preprocessed" / DATASET / "splits_final.json").write_text(
        json.dumps([{"train": ["c"], "val": ["a", "b"]}])
    )
    return entry


def test_trainings_are_kept_once_beside_those_that_are_there(
    sweep: Path, measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def keep() -> str:
        hippocampus_keep.keep_finished(sweep, tmp_path / "kept", DATASET, "0")
        return capsys.readouterr().out

    place = tmp_path / "kept" / sweep.name
    assert keep() == "kept: plain, seed 0\nkept: plain, seed 2\n"  # seed 1 has no validation
    assert keep() == ""
    fold = next(sweep.glob("plain/seed_2/*/*/fold_0"))
    (fold / FINAL).write_bytes(b"trained again")
    del measured["clipped_steps"]
    (fold / "validation" / "a.npz").touch()
    assert keep() == "kept: plain, seed 2\n"
    assert {*read_kept([place / CASES_BY_SEED])["plain"]} == {0, 2}
    assert [row["seed"] for row in read_rows(place / "runs.csv")] == ["0", "2"]
    assert read_rows(place / "runs.csv")[0]["command"] == "nnunet-kd -t $nnUNet_results/x maps=$nnUNet_preprocessed/y"
    assert read_rows(place / "clipped.csv")[0]["share_of_steps"] == "0.5000"
    assert len(read_rows(place / "epochs.csv")) == 4
    trusted = {"variant": "plain", "seed": "2", "brier": "0.25", "ece": "0.25", "undecided": "0.25"}
    assert read_rows(place / "calibration.csv") == [{**trusted, "class": name} for name in ("overall", "heart")]


def test_what_another_machine_has_kept_is_not_trained_again(
    sweep: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    hippocampus_keep.keep_finished(sweep, kept, DATASET, "0")
    elsewhere = sweep.parent / "elsewhere" / sweep.name
    assert hippocampus_keep.trained_elsewhere(elsewhere, kept, [0]) == {"plain"}
    assert hippocampus_keep.trained_elsewhere(elsewhere, kept, [0, 1]) == set()
    assert hippocampus_keep.trained_elsewhere(sweep, kept, [0]) == set()  # this machine has: nothing is trained
    assert hippocampus_keep.trained_elsewhere(elsewhere, None, [0]) == set()


def test_rounded_weights_share_their_memory_still(tmp_path: Path) -> None:
    weight = torch.tensor([1 / 3, 2.0])
    torch.save({"network_weights": {"a": weight, "b": weight, "count": torch.tensor(3)}}, tmp_path / FINAL)
    assert hippocampus_teacher.round_weights(tmp_path / FINAL)
    weights = read_checkpoint(tmp_path / FINAL)["network_weights"]
    assert torch.equal(weights["a"], weight.half().float())
    assert weights["a"].data_ptr() == weights["b"].data_ptr()
    assert not hippocampus_teacher.round_weights(tmp_path / FINAL)


@pytest.mark.parametrize(
    ("there", "archived", "wanted"),
    [
        ((), True, ["nnUNetv2_install_pretrained_model_from_zip"]),
        ((), False, ["nnUNetv2_train --c", "nnUNetv2_train --val"]),
        ((LATEST,), True, ["nnUNetv2_train --c", "nnUNetv2_train --val"]),
        ((FINAL,), True, ["nnUNetv2_train --val"]),
        ((FINAL, "validation/summary.json"), True, []),
    ],
)
def test_where_the_teacher_comes_from(
    there: tuple[str, ...], archived: bool, wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / DATASET / "nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres"
    folder, archive, commands = model / "fold_5", tmp_path / "teacher.zip", []
    (folder / "validation").mkdir(parents=True)
    for name in there:
        (folder / name).touch()
    if archived:
        archive.touch()
    monkeypatch.setattr(hippocampus_teacher, "round_weights", lambda path: False)
    monkeypatch.setattr(
        hippocampus_teacher,
        "run",
        lambda name, *told: commands.append(f"{name} {told[-1]}" if told[-1] in ("--c", "--val") else name),
    )
    hippocampus_teacher.provide_teacher(model, "5", "cpu", kept=archive)
    assert commands == wanted


def test_the_teacher_is_kept_once_and_used_as_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / DATASET / "nnUNetTrainer_20epochs__nnUNetPlans__3d_fullres"
    (model / "fold_5" / "validation").mkdir(parents=True)
    for name in (FINAL, "validation/summary.json"):
        (model / "fold_5" / name).touch()
    commands: list[tuple[object, ...]] = []
    monkeypatch.setattr(hippocampus_teacher, "round_weights", lambda path: False)
    monkeypatch.setattr(hippocampus_teacher, "open_model", lambda *told: nullcontext())
    monkeypatch.setattr(hippocampus_teacher, "export_folder", lambda model, archive, options: archive.touch())
    monkeypatch.setattr(hippocampus_teacher, "run", lambda *told: commands.append(told))
    for _ in range(2):
        hippocampus_teacher.provide_teacher(model, "5", "cpu", tmp_path / "kept")
    archive = tmp_path / "kept" / "teachers" / hippocampus_teacher.ARCHIVE
    assert commands == [("nnUNetv2_install_pretrained_model_from_zip", archive)]


def test_the_kept_teacher_is_a_whole_model() -> None:
    with open_model(hippocampus_teacher.KEPT, ("5",)) as model:
        checkpoint = model.read_checkpoint("5")
        assert (model.folder / "fold_5" / "validation" / "summary.json").is_file()
    assert all(torch.equal(one, one.half().float()) for one in checkpoint["network_weights"].values())
