"""What is kept of the hippocampus sweeps' trainings, row by row."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import hippocampus
import numpy as np
import pytest

from nnunet_kd.evaluation.kept import read_kept, write_kept
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import CASE_COLUMNS, Evaluation
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.workflows.comparison import CASES_BY_SEED


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_kept_beside_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    fold = tmp_path / "fold_5"
    fold.mkdir()
    (fold / FINAL).write_bytes(b"weights")
    shares: dict[str, list[float]] = {"clipped_steps": [0.25, 0.75]}
    logged = {"train_losses": [0.5, 0.25], "mean_fg_dice": [0.1, 0.2]}
    record = SimpleNamespace(
        command=["nnunet-kd", "-t", f"{tmp_path}/results/x"],
        training_seconds=8.0,
        software={"nnunetv2": "2", "torch": "2"},
    )
    values = {name: np.ones((2, 1)) for name in CASE_COLUMNS[2:]}
    found = Evaluation(Path(), Path(), ("a", "b"), ("heart",), values, MetricOptions())
    cases, target = tmp_path / CASES_BY_SEED, tmp_path / "kept"

    def keep(variant: str, entry: dict[str, list[float]]) -> None:
        finished = SimpleNamespace(fold_folders={(variant, 0, "5"): fold})
        monkeypatch.setattr(hippocampus, "find_finished", lambda *told: finished)
        monkeypatch.setattr(hippocampus, "read_record", lambda folder: record)
        monkeypatch.setattr(hippocampus, "epoch_seconds", lambda folder: [3.0, 5.0])
        checkpoint = {"nnunet_kd": entry, "logging": logged}
        monkeypatch.setattr(hippocampus, "read_checkpoint", lambda path, in_memory: checkpoint)
        write_kept({variant: {0: found}}, cases)
        hippocampus.keep(tmp_path / "sweep", cases, target, "5", [variant])

    keep("default", shares)
    keep("no-rescale", shares)
    keep("default", shares)
    keep("old", {})
    assert set(read_kept([target / CASES_BY_SEED])) == {"default", "no-rescale", "old"}
    assert [row["variant"] for row in rows(target / "runs.csv")] == ["no-rescale", "default", "old"]
    assert rows(target / "runs.csv")[0]["command"] == "nnunet-kd -t $nnUNet_results/x"
    assert [(row["variant"], row["share_of_steps"]) for row in rows(target / "clipped.csv")] == [
        ("no-rescale", "0.5000"),
        ("default", "0.5000"),
    ]
    assert len(rows(target / "epochs.csv")) == 6
