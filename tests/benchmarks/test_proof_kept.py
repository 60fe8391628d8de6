"""What is kept of the proof's trainings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import proof_datasets
import proof_keep
import pytest
import sweep_trainings
from filelock import FileLock
from proof_values import KEPT

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import CASE_COLUMNS, Evaluation
from nnunet_kd.workflows.sweep.record import RunRecord


def test_only_whole_trainings_are_kept(sweep: Path) -> None:
    with FileLock(sweep / "plain" / "seed_2" / ".fold_0.lock"):
        assert [(one.row, one.seed) for one in proof_keep.finished_trainings("hippocampus")] == [("plain", 0)]
    assert [one.seed for one in proof_keep.finished_trainings("hippocampus")] == [0, 2]


def test_no_machines_path_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sweep_trainings.ROOTS:
        monkeypatch.setenv(name, f"/data/{name[7:]}")
    assert sweep_trainings.without_paths("-t /data/results/x maps=/data/preprocessed/y") == (
        "-t $nnUNet_results/x maps=$nnUNet_preprocessed/y"
    )


def test_rows_are_added_and_replaced_under_the_same_columns(tmp_path: Path) -> None:
    path, columns = tmp_path / "runs.csv", ("variant", "seed", "commit")
    sweep_trainings.add_rows(path, columns, [("plain", "0", "a"), ("plain", "1", "a")])
    sweep_trainings.add_rows(path, columns, [("plain", "1", "b"), ("inherited", "0", "b")])
    with path.open(newline="") as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [
            ("plain", "0", "a"),
            ("plain", "1", "b"),
            ("inherited", "0", "b"),
        ]
    with pytest.raises(SystemExit, match="other columns"):
        sweep_trainings.add_rows(path, ("variant", "seed", "code"), [])


def test_kept_files_have_the_columns_that_are_written() -> None:
    for path in KEPT.glob("proof-*/runs.csv"):
        assert tuple(next(csv.reader(path.open()))) == proof_keep.RUN_COLUMNS


def test_a_row_whose_trainings_have_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sweep_trainings.ROOTS:
        monkeypatch.setenv(name, f"/data/{name[7:]}")

    def keep(**settings: object) -> None:
        proof_keep.keep_settings("inherited", {"nnunet_kd": {"settings": {"reduction": 4.0, **settings}}}, tmp_path)

    keep(seed=0, start="/data/results/x")
    keep(seed=1, start="/data/results/x")
    assert "$nnUNet_results/x" in (tmp_path / "settings" / "inherited.yaml").read_text()
    with pytest.raises(DataError, match="its settings are not those of"):
        keep(seed=2, start="/data/results/y")


def test_what_is_kept_of_a_training(sweep: Path, origin: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    one = next(proof_keep.finished_trainings("hippocampus"))
    told = {
        "variant": "plain",
        "method": "student",
        "fold": 0,
        "seed": 0,
        "device": "cpu",
        "starts": 2,
        "command_seconds": 9.0,
    }
    command = ["nnunet-kd", "train", "--set", f"start={sweep.parent}/x"]
    RunRecord.model_validate({**told, "command": command, "software": {}}).write(one.folder)
    (one.folder / "training_log_1.txt").write_text("Epoch time: 3.0 s\nEpoch time: 5.0 s\n")
    for name in sweep_trainings.ROOTS[1:]:
        monkeypatch.setenv(name, f"/data/{name}")
    soft = {"maps": "/data/maps/teacher_mirrored_12ab"}
    settings = {"teacher": [{"sha256": "aa"}, {"sha256": "bb"}], "objectives": {"soft": soft}}
    entry = {"settings": settings, "clipped_steps": [0.25, 0.75], "history": [{"segmentation": 0.123456, "soft": 1.0}]}
    logged = {"train_losses": [0.5, 0.25], "mean_fg_dice": [0.1, 0.2]}
    checkpoint = {"nnunet_kd": entry, "logging": logged}
    row = dict(zip(proof_keep.RUN_COLUMNS, proof_keep.run_row(one, checkpoint, origin), strict=True))
    assert (row["teacher_sha256"], row["soft_labels"], row["starts"]) == ("aa bb", "teacher_mirrored_12ab", "2")
    assert (row["training_seconds"], row["median_epoch_seconds"], row["clipped_share"]) == ("8", "4", "0.5000")
    assert row["command"].endswith("start=$nnUNet_results/Dataset004_Hippocampus/sweeps/x")
    first, second = (
        dict(zip(proof_keep.EPOCH_COLUMNS, each, strict=True)) for each in proof_keep.epoch_rows(one, checkpoint)
    )
    assert json.loads(first["losses"]) == {"segmentation": 0.12346, "soft": 1.0}
    assert (first["clipped_share"], second["pseudo_dice"], second["losses"]) == ("0.2500", "0.200000", "{}")


def test_one_bad_training_does_not_stop_the_others(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def keep_training(name: str, one: proof_keep.Training, target: Path) -> None:
        if one.seed == 0:
            raise KeyError("history")
        kept.append(one.seed)

    monkeypatch.setattr(proof_keep, "keep_training", keep_training)
    (problem,) = proof_keep.keep("hippocampus", tmp_path / "kept")
    assert problem.startswith("hippocampus, plain, seed 0:")
    assert kept == [2]


def test_a_teacher_is_measured_once_for_all_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def evaluate(dataset: proof_datasets.Dataset, predictions: Path) -> Evaluation:
        measured.append(dataset)
        values = {name: np.ones((1, 1)) for name in CASE_COLUMNS[2:]}
        return Evaluation(Path(), Path(), ("a",), ("heart",), values, MetricOptions())

    monkeypatch.setattr(proof_keep, "evaluate", evaluate)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    for dataset in 2 * (proof_datasets.HIPPOCAMPUS, proof_datasets.ACDC):
        proof_keep.keep_teacher(dataset, tmp_path)
    assert measured == [proof_datasets.HIPPOCAMPUS, proof_datasets.ACDC]
    assert proof_keep.kept_teacher(proof_datasets.ACDC, tmp_path) is not None
    assert proof_keep.kept_teacher(proof_datasets.ACDC, None) is None
    assert proof_keep.kept_seeds("acdc", tmp_path)["teacher"] == set()


@pytest.mark.parametrize("kept", [True, False])
def test_only_a_teacher_that_is_not_measured_predicts(
    kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[object] = []
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for dataset in (proof_datasets.HIPPOCAMPUS, proof_datasets.ACDC):
        splits = tmp_path / dataset.name / "splits_final.json"
        splits.parent.mkdir()
        splits.write_text(json.dumps([{"train": [], "val": ["a"]}]))
    monkeypatch.setattr(proof_datasets.hippocampus, "prepare", lambda *told: done.append(told[-1]))
    monkeypatch.setattr(proof_datasets, "prepare_acdc", lambda source: None)
    monkeypatch.setattr(proof_datasets, "predict_acdc", lambda device: done.append("acdc"))
    monkeypatch.setattr(proof_datasets, "check_teacher", lambda dataset, predicted: done.append(predicted))
    measured = (proof_datasets.HIPPOCAMPUS, proof_datasets.ACDC) if kept else ()
    proof_datasets.prepare(tmp_path, tmp_path, tmp_path, "cpu", measured)
    assert done == ([False, False, False] if kept else [True, "acdc", True, True])
