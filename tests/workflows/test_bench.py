"""The benchmarks run and report what they say; their times are never tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.errors import RunFailed, SettingsError
from nnunet_kd.workflows.bench import step
from nnunet_kd.workflows.bench.loss import measure_memory, measure_speed, stage_shapes
from nnunet_kd.workflows.bench.pair import DATASET_JSON, Shape, random_batch
from nnunet_kd.workflows.bench.rows import TrainerPhase, all_trainers, phases, prepared_trainers, training_step
from nnunet_kd.workflows.bench.size import measure_sizes
from nnunet_kd.workflows.bench.step import measure_steps
from tests.conftest import make_plans


def test_loss_agrees_with_ptwt_where_it_is_timed() -> None:
    result = measure_speed([(1, 4, 10, 12, 8), (1, 8, 5, 6, 4)], repeats=1)
    assert result["largest relative difference"] < 1e-5
    assert set(result["seconds"]) == {"ptwt, zero", "nnunet-kd, zero", "nnunet-kd, periodization"}


@pytest.mark.parametrize("command", ["loss", "step"])
def test_no_repeats_are_refused(command: str) -> None:
    cli._register()
    result = CliRunner().invoke(cli.app, ["bench", command, "--repeats", "0"])
    assert result.exit_code == 2, (result.output, result.exception)


def test_a_process_that_ends_without_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho Traceback >&2\necho DefaultCPUAllocator: not enough memory >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(RunFailed, match=r"(?s)2 x 8 x 4 x 4 ended with exit code 1.*DefaultCPUAllocator: not enough"):
        measure_memory((2, 8, 4, 4))


@pytest.mark.slow
@pytest.mark.nightly
def test_memory_stays_below_three_times_the_features() -> None:
    result = measure_memory()
    assert result["features"] == 2 * 40 * 128**3 * 4
    assert 1 < result["ratio"] < 3


def test_step_measures_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    # the real peaks are measured below
    peaks = {"nnUNetTrainerDCD": 2, "nnUNetTrainerLogits": 3}
    rows = [{"name": name, "peak bytes": peak} for name, peak in peaks.items()]
    monkeypatch.setattr(step, "measure_sizes", lambda *arguments: rows)
    result = measure_steps(list(peaks), repeats=1)
    assert result["peak bytes"] == peaks
    assert list(result["seconds"]) == [
        "student step", "teacher encoder", "teacher forward", "nnUNetTrainerDCD", "nnUNetTrainerLogits"
    ]  # fmt: skip
    assert result["forward"] == {"nnUNetTrainerDCD": "teacher encoder", "nnUNetTrainerLogits": "teacher forward"}
    assert result["every"] == {"nnUNetTrainerDCD": 4, "nnUNetTrainerLogits": 1}
    floor = result["seconds"]["student step"] + result["seconds"]["teacher forward"]
    assert result["ratio"]["nnUNetTrainerLogits"] == pytest.approx(result["seconds"]["nnUNetTrainerLogits"] / floor)


def test_stored_soft_labels_run_no_teacher() -> None:
    result = measure_steps(["nnUNetTrainerSoft"], repeats=1, memory=False)
    assert list(result["seconds"]) == ["student step", "nnUNetTrainerSoft"]
    assert result["forward"] == {"nnUNetTrainerSoft": ""}
    seconds = result["seconds"]
    assert result["ratio"]["nnUNetTrainerSoft"] == pytest.approx(seconds["nnUNetTrainerSoft"] / seconds["student step"])


def test_a_shape_is_a_name_or_a_model_folder(tmp_path: Path) -> None:
    made = make_plans(features=(8, 12, 16), patch=(16, 12, 8), strides=((1, 1, 1), (2, 2, 2), (2, 1, 2)))
    for name, content in (("plans.json", made), ("dataset.json", DATASET_JSON)):
        (tmp_path / name).write_text(json.dumps(content))
    shape = Shape(str(tmp_path))
    assert (shape.plans, shape.dataset_json) == (made, DATASET_JSON)
    assert stage_shapes(shape) == [(2, 8, 16, 12, 8), (2, 12, 8, 6, 4), (2, 16, 4, 6, 2)]
    with pytest.raises(SettingsError, match=r"no shape 'brats'; there are hippocampus, brats2024, and every folder"):
        Shape("brats")
    (tmp_path / "plans.json").write_text(json.dumps(make_plans(dimensions=2)))
    with pytest.raises(SettingsError, match="has no configuration 3d_fullres"):
        Shape(str(tmp_path))


def test_every_trainer_has_a_row_and_exploration_one_of_its_own() -> None:
    rows = phases(all_trainers())
    assert [row.name for row in rows][:1] == ["nnUNetTrainerDCD"]
    assert len({row.trainer for row in rows}) == 10
    assert [row.trainer for row in rows if row.exploring] == ["nnUNetTrainerFoPro", "nnUNetTrainerFreeKD"]


def test_the_step_that_is_measured_is_one_in_which_the_objective_counts() -> None:
    row = TrainerPhase("dcd", "nnUNetTrainerDCD")
    with prepared_trainers([row], Shape("hippocampus"), torch.device("cpu")) as prepared:
        trainer = prepared["dcd"]
        training_step(trainer, random_batch(trainer), exploring=False)()
        assert trainer.history.close_epoch(0)["dcd"] > 0


@pytest.mark.nightly
def test_peak_memory_of_a_step_is_measured_in_a_process_of_its_own() -> None:
    rows = measure_sizes(["nnUNetTrainerFitNet"], Shape("hippocampus"), torch.device("cpu"))
    peaks = {row["name"]: row["peak bytes"] for row in rows}
    assert set(peaks) == {"nnUNetTrainerStudent", "nnUNetTrainerFitNet"}
    assert 1e7 < peaks["nnUNetTrainerStudent"] < peaks["nnUNetTrainerFitNet"] < 1e10
