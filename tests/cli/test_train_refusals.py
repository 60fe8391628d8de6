"""What ``nnunet-kd train`` refuses before its trainer is built, what it passes on, and that a refused training leaves nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.errors import TeacherError, TrainingStopped
from nnunet_kd.nnunet import training
from tests.cli.test_cli import error_of, run

TRAIN = ("train", "998", "3d_fullres", "0", "-device", "cpu")
MODEL = "nnUNetTrainerDCD__nnUNetPlans__3d_fullres"


def fold_folder() -> Path:
    return Path(os.environ["nnUNet_results"], "Dataset998_Tiny", MODEL, "fold_0")


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What nnU-Net's ``run_training`` is given, which trains nothing."""
    given: dict[str, Any] = {}

    def keep(dataset: str, configuration: str, fold: str, trainer: str, *others: Any, **options: Any) -> None:
        given.update(options, fold=fold, trainer=trainer)

    monkeypatch.setattr(training.nnunet_run, "run_training", keep)
    return given


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--val"], 8, "has no checkpoint_final.pth, so this fold is not trained to its end. Train it without --val"),
        (["--c", "--val"], 3, "--c goes on with a training, and --val validates a finished one"),
        (["--val_best", "--disable_checkpointing"], 3, "--disable_checkpointing saves none"),
        (["-m", "nnUNetTrainerDCD"], 3, "Give dcd (-m dcd), or in `nnunet-kd train` -tr nnUNetTrainerDCD"),
        (
            ["-tr", "nnUNetTrainerDCD", "-m", "dcd"],
            3,
            "-m dcd and -tr nnUNetTrainerDCD both say which trainer is meant",
        ),
        (["-tr", "dcd"], 3, "that this command takes (did you mean nnUNetTrainerDCD?): nnUNetTrainerCWD"),
        (
            ["-tr", "nnUNetTrainer"],
            3,
            "-tr nnUNetTrainer is none of the trainers of this package that this command takes: nnUNetTrainerCWD, ",
        ),
        (["-m", "inherited", "--set", "start=random"], 3, "its settings say start: random"),
        (["--set", "start=techer"], 3, "the model techer does not exist"),
        (["-t", "/nowhere"], 5, "the teacher /nowhere does not exist"),
        (["--set", "mirror_axes=[0]", "-t", "/nowhere"], 5, "the teacher /nowhere does not exist"),
    ],
)
def test_refused_without_a_trace(tiny: dict, arguments: list[str], code: int, message: str) -> None:
    before = sorted(Path(os.environ["nnUNet_results"]).rglob("*"))
    finished = run(*TRAIN, *arguments)
    assert (finished.returncode, message in error_of(finished)) == (code, True), finished.stderr
    assert sorted(Path(os.environ["nnUNet_results"]).rglob("*")) == before


@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_gpus_are_no_command_line(number: str) -> None:
    assert run(*TRAIN, "-num_gpus", number).returncode == 2


def test_more_gpus_than_there_are(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    finished = run("train", "998", "3d_fullres", "0", "-num_gpus", "2")
    assert (finished.returncode, "this process sees 1 CUDA device." in error_of(finished)) == (3, True)


def test_nnunets_own_options_are_passed_on(tiny: dict, passed_on: dict[str, Any]) -> None:
    # main returns where nothing is wrong, and click then ends the process
    assert run(*TRAIN, "-tr", "nnUNetTrainerLogits", "--disable_checkpointing").returncode == 0
    assert (passed_on["trainer"], passed_on["disable_checkpointing"]) == ("nnUNetTrainerLogits", True)
    assert run("train", "998", "3d_fullres", "00", "-device", "cpu").returncode == 0
    assert (passed_on["trainer"], passed_on["fold"]) == ("nnUNetTrainerDCD", "0")
    assert passed_on["disable_checkpointing"] is False


def test_validating_needs_the_checkpoint_that_is_validated(tiny: dict, passed_on: dict[str, Any]) -> None:
    folder = fold_folder()
    folder.mkdir(parents=True)
    (folder / "checkpoint_latest.pth").touch()
    told = error_of(run(*TRAIN, "--val"))
    assert "Found: checkpoint_latest.pth. Finish the training with --c." in told
    (folder / "checkpoint_final.pth").touch()
    finished = run(*TRAIN, "--val", "--val_best")
    assert (finished.returncode, "has no checkpoint_best.pth" in error_of(finished)) == (8, True)
    # a finished training is validated whatever start files name by now
    assert run(*TRAIN, "--val", "--set", "start=gone").returncode == 0
    assert passed_on["only_run_validation"] is True


def test_a_fold_that_the_splits_do_not_have(tiny: dict, passed_on: dict[str, Any]) -> None:
    split = {"train": ["a"], "val": ["b"]}
    Path(os.environ["nnUNet_preprocessed"], "Dataset998_Tiny", "splits_final.json").write_text(
        json.dumps([split, split])
    )
    for command in ("train", "inherit", "weigh"):
        finished = run(command, "998", "3d_fullres", "7", "-device", "cpu")
        assert finished.returncode == 3, command
        assert "there is no fold '7': the splits have folds 0 to 1" in error_of(finished)
    assert "there is no fold '7'" in run("doctor", "998", "-f", "7").stdout
    assert run(*TRAIN).returncode == 0


def test_a_part_of_a_datasets_name(tiny: dict) -> None:
    for given in ("Dataset998", "Dataset998_"):
        finished = run("train", given, "3d_fullres", "0", "-device", "cpu")
        assert finished.returncode == 7
        told = f"there is no dataset '{given}' in nnU-Net's folders, but Dataset998_Tiny. Give the whole name"
        assert told in error_of(finished)
    assert "has not been preprocessed" in error_of(run("plan", "Dataset997_Other"))


@pytest.mark.parametrize("place", ["", MODEL, f"{MODEL}/fold_0"])
def test_a_file_where_the_training_belongs(tiny: dict, place: str, tmp_path: Path) -> None:
    results = tmp_path / "other"
    file = results / "Dataset998_Tiny" / place
    file.parent.mkdir(parents=True)
    file.touch()
    finished = run(*TRAIN, nnUNet_results=str(results))
    assert (finished.returncode, f"{file} is no folder that can be written to" in error_of(finished)) == (6, True)


def test_folders_that_cannot_be_written(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, a test cannot take its own permissions away."""
    preprocessed = os.environ["nnUNet_preprocessed"]
    for closed in (os.environ["nnUNet_results"], preprocessed):
        monkeypatch.setattr(os, "access", lambda path, mode, closed=closed: not str(path).startswith(closed))
        finished = run(*TRAIN)
        assert (finished.returncode, "Change " in error_of(finished)) == (6, True), finished.stderr
    Path(preprocessed, "Dataset998_Tiny", "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    assert "/nowhere does not exist" in error_of(run(*TRAIN, "-t", "/nowhere"))
    Path(preprocessed, "Dataset998_Tiny", "splits_final.json").unlink()  # nnU-Net needs none for fold all
    everything = ("train", "998", "3d_fullres", "all", "-device", "cpu")
    assert "/nowhere does not exist" in error_of(run(*everything, "-t", "/nowhere"))


def test_what_was_there_and_what_was_trained_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "fold_0"

    def refused(error: Exception, log: str) -> list[str]:
        def train() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"training_log_{len(list(folder.iterdir()))}.txt").write_text(log)
            raise error

        with pytest.raises(type(error)), training.nothing_left_if_refused(folder):
            train()
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))

    assert refused(TeacherError("none"), "2026-01-01 12:00:00.000000: Teacher: none\n") == []
    begun = "2026-01-01 12:00:00.000000: \n2026-01-01 12:00:00.000000: Epoch 0\n"
    kept = ["model", "model/fold_0", "model/fold_0/training_log_0.txt"]
    assert refused(TrainingStopped("full"), begun) == kept
    assert refused(TeacherError("none"), "nothing\n") == kept
    assert refused(ValueError("a fault"), "nothing\n") == [*kept, "model/fold_0/training_log_1.txt"]
