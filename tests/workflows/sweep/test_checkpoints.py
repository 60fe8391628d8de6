"""Sweeps whose students start from given weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet_kd.errors import SettingsError
from nnunet_kd.models.plans import build_meta_network, reduce_plans
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.bench.pair import DATASET_JSON
from nnunet_kd.workflows.sweep.execution import train
from nnunet_kd.workflows.sweep.record import read_record
from tests.workflows.sweep.test_execution import calls
from tests.workflows.sweep.test_runs import plan


def write_student(plans: dict, path: Path, reduction: float = 4) -> Path:
    """A student's checkpoint, as far as its weights go."""
    network = build_meta_network(reduce_plans(plans, reduction), "3d_fullres", 1, len(DATASET_JSON["labels"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": network.to_empty(device="cpu").state_dict()}, path)
    return path


def test_weights_are_given_until_there_is_a_checkpoint(tiny: dict, tmp_path: Path, fake: Callable) -> None:
    weights = write_student(tiny, tmp_path / "start.pth")
    run = plan(pretrained_weights=str(weights))[1]
    assert run.pretrained is not None
    assert run.pretrained.sha256 == sha256(weights)
    assert train(run, program=fake([run], **{str(run): "fail"})) is not None
    (run.folder / "checkpoint_latest.pth").touch()
    assert train(run, program=fake([run], **{str(run): "skip_validation"})) is not None
    assert train(run, program=fake([run])) is None
    start = f"-pretrained_weights {weights}"
    common = " ".join(run.arguments)
    assert calls(run) == [f"{common} {start}", f"{common} --c", f"{common} --val"]
    record = read_record(run.folder)
    assert record is not None
    assert record.pretrained_sha256 == sha256(weights)


def test_a_model_folder_gives_every_fold_its_own(tiny: dict, tmp_path: Path) -> None:
    model = tmp_path / "model"
    paths = [
        write_student(tiny, model / f"fold_{fold}" / "checkpoint_final.pth").with_name("checkpoint_final.pth")
        for fold in (0, 1)
    ]
    runs = plan(methods=["student"], folds=[0, 1], pretrained_weights=str(model))
    assert [run.pretrained.path for run in runs if run.pretrained] == paths
    shutil.rmtree(model / "fold_1")
    with pytest.raises(SettingsError, match="fold_1"):
        plan(methods=["student"], folds=[0, 1], pretrained_weights=str(model))


def test_another_start_than_on_disk_is_refused(tiny: dict, tmp_path: Path, fake: Callable) -> None:
    given = str(write_student(tiny, tmp_path / "start.pth"))
    run = plan(methods=["student"], pretrained_weights=given)[0]
    assert train(run, program=fake([run])) is None
    moved = tmp_path / "moved.pth"
    shutil.copy(given, moved)
    assert plan(methods=["student"], pretrained_weights=str(moved))[0].done
    with pytest.raises(SettingsError, match=r"pretrained_weights: there [0-9a-f]{64}, asked for random weights"):
        plan(methods=["student"])
    torch.save({**torch.load(given), "epoch": 3}, given)
    with pytest.raises(SettingsError, match=r"pretrained_weights: there [0-9a-f]{64}, asked for [0-9a-f]{64}"):
        plan(methods=["student"], pretrained_weights=given)


def test_weights_that_do_not_fit_are_refused_before_anything_starts(tiny: dict, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no .*nowhere\.pth"):
        plan(pretrained_weights=str(tmp_path / "nowhere.pth"))
    wider = write_student(tiny, tmp_path / "wider.pth", reduction=2)
    with pytest.raises(
        SettingsError,
        match=r"wider\.pth is of another network.*weight: 4x1x3x3x3 there, 2x1x3x3x3 in the student",
    ):
        plan(pretrained_weights=str(wider))
    assert plan(methods=["student"], settings={"reduction": 2}, pretrained_weights=str(wider))[0].pretrained is not None
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(SettingsError, match="no network_weights"):
        plan(pretrained_weights=str(other))
    other.write_bytes(b"half a file")
    with pytest.raises(SettingsError, match="its 11 bytes are no whole zip archive"):
        plan(pretrained_weights=str(other))
