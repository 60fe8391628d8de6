"""The benchmarks run and report what they say; their times are never tested."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.errors import ModelError, NnunetKdError, RunFailed, SettingsError
from nnunet_kd.models.plans import reduce_plans
from nnunet_kd.workflows.bench import step
from nnunet_kd.workflows.bench.loss import measure_memory, measure_speed, stage_shapes
from nnunet_kd.workflows.bench.pair import DATASET_JSON, Shape, random_batch
from nnunet_kd.workflows.bench.rows import TrainerPhase, all_trainers, phases, prepared_trainers, training_step
from nnunet_kd.workflows.bench.size import measure_sizes, unavoidable
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


@pytest.mark.parametrize(
    "line",
    [
        "step -tr dcd",
        "step -tr nnUNetTrainerDCDD",
        "step -tr nnUNetTrainer",
        "step -tr nnUNetTrainerInherited",
        "step -tr nnUNetTrainerKD",
        "size -tr nnUNetTrainerDCD -tr foo",
    ],
)
def test_trainers_that_cannot_be_measured_are_told_at_once(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_kd.workflows.bench.pair.Shape", None)
    error = refused(line)
    assert error.exit_code == 3
    assert "is none of the trainers of this package that this command takes" in str(error)
    assert "nnUNetTrainerDCD, nnUNetTrainerCWD" in str(error)
    assert "nnUNetTrainerKD" not in str(error).partition("command takes")[2]
    assert ("did you mean nnUNetTrainerDCD?" in str(error)) == ("dcd" in line.lower() and "foo" not in line)


@pytest.mark.parametrize("line", ["loss", "step", "size"])
def test_where_figures_go_is_checked_before_they_are_measured(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_kd.workflows.bench.pair.Shape", None)
    monkeypatch.setattr("nnunet_kd.workflows.bench.loss.measure_speed", None)
    error = refused(f"{line} --json {tmp_path}/no/a.json")
    assert (error.exit_code, f"the folder {tmp_path}/no does not exist" in str(error)) == (3, True)
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # as root, nothing is closed
    assert refused(f"{line} --json {tmp_path}/a.json").exit_code == 6


def test_a_loss_is_measured_on_the_devices_that_help_names() -> None:
    assert "-device must be cpu or cuda, got 'mps'" in str(refused("loss -device mps"))


def refused(line: str) -> NnunetKdError:
    """Why ``nnunet-kd bench`` refuses."""
    cli._register()
    error = CliRunner().invoke(cli.app, ["bench", *line.split()]).exception
    assert isinstance(error, NnunetKdError), error
    return error


def write_model(folder: Path, plans: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in (("plans.json", plans), ("dataset.json", DATASET_JSON)):
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_model_folder_is_measured_in_its_own_configuration(tmp_path: Path) -> None:
    several = make_plans()
    flat = make_plans(dimensions=2)["configurations"]["2d"]
    whole = several["configurations"]["3d_fullres"]
    low = {**whole, "patch_size": [8, 8, 8]}
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    known = {"2d": flat, "3d_lowres": low, "3d_fullres": whole, "3d_cascade_fullres": second}
    several["configurations"] = known
    for name, patch in (("2d", [16, 16]), ("3d_lowres", [8, 8, 8]), ("3d_fullres", [16, 16, 16])):
        shape = Shape(str(write_model(tmp_path / f"nnUNetTrainer__nnUNetPlans__{name}", several)))
        assert (shape.configuration_name, shape.configuration["patch_size"]) == (name, patch)
    with pytest.raises(SettingsError, match="second stage of a cascade"):
        Shape(str(write_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres", several)))
    anywhere = write_model(tmp_path / "mine", several)
    assert Shape(str(anywhere)).configuration_name == "3d_fullres", "where nothing else says it"
    (anywhere / "fold_0").mkdir()
    checkpoint = {"network_weights": {}, "trainer_name": "x", "init_args": {"configuration": "3d_lowres"}}
    torch.save(checkpoint, anywhere / "fold_0" / "checkpoint_final.pth")
    assert Shape(str(anywhere)).configuration_name == "3d_lowres"
    unknown = {**several, "configurations": {name: known[name] for name in ("2d", "3d_lowres")}}
    with pytest.raises(SettingsError, match="does not say which configuration of its plan is meant: 2d, 3d_lowres"):
        Shape(str(write_model(tmp_path / "unknown", unknown)))
    with pytest.raises(SettingsError, match="is a student's model"):
        Shape(str(write_model(tmp_path / "student", reduce_plans(make_plans(), 4))))
    (anywhere / "dataset.json").write_text("{")
    with pytest.raises(ModelError, match="is not valid JSON"):
        Shape(str(anywhere))


def test_a_step_of_a_flat_model(tmp_path: Path) -> None:
    shape = Shape(str(write_model(tmp_path / "flat", make_plans(dimensions=2))))
    result = measure_steps(["nnUNetTrainerDCD"], repeats=1, memory=False, shape=shape)
    assert result["seconds"]["nnUNetTrainerDCD"] > 0
    assert unavoidable(shape)["flops"]["student"] > 0


def test_the_least_of_a_step_counts_the_heads_that_the_network_has(tmp_path: Path) -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    ignore = {"labels": {"background": 0, "core": 1, "ignore": 2}}
    plain = {"labels": {"background": 0, "core": 1}}
    counted = {}
    for name, labels in (("regions", regions), ("ignore", ignore), ("plain", plain)):
        folder = write_model(tmp_path / name, make_plans(dimensions=2))
        described = json.loads((folder / "dataset.json").read_text()) | labels
        (folder / "dataset.json").write_text(json.dumps(described))
        counted[name] = unavoidable(Shape(str(folder)))
    assert counted["regions"] == counted["ignore"] == counted["plain"]  # two heads each


def test_a_shape_is_a_name_or_a_model_folder(tmp_path: Path) -> None:
    made = make_plans(features=(8, 12, 16), patch=(16, 12, 8), strides=((1, 1, 1), (2, 2, 2), (2, 1, 2)))
    shape = Shape(str(write_model(tmp_path, made)))
    assert (shape.plans, shape.dataset_json) == (made, DATASET_JSON)
    assert stage_shapes(shape) == [(2, 8, 16, 12, 8), (2, 12, 8, 6, 4), (2, 16, 4, 6, 2)]
    with pytest.raises(SettingsError, match=r"no shape 'brats'; there are hippocampus, brats2024, and every folder"):
        Shape("brats")


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
