"""Cases without labels: what they change, and what they must not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from filelock import FileLock
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.soft_labels.maps import open_map
from nnunet_kd.errors import DataError, MissingRequirement, SettingsError
from nnunet_kd.nnunet.datasets import preprocessed_cases, write_segmentation
from nnunet_kd.training import soft_labels
from nnunet_kd.training.trainer import DistillationTrainer
from nnunet_kd.training.unlabelled import loss_of_labelled, share_of_labels, unlabelled_folder
from nnunet_kd.workflows import soften as workflow
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, random_batch
from nnunet_kd.workflows.unlabelled_images import add_images
from tests.training.test_soft_labels import SOFT, ready
from tests.training.tiny_trainer import ready as ready_without_data
from tests.training.tiny_training import CASES, NAME, SIZE, without_pictures, write_tiny_dataset

cli._register()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset, softened with two images without labels."""
    root = tmp_path_factory.mktemp("unlabelled")
    with nnunet_folders(root):
        plans = write_tiny_dataset()
        _with_statistics(plans)
        images = root / "more"
        images.mkdir()
        random = np.random.default_rng(3)
        for name in ("extra_0", "extra_1"):
            image = sitk.GetImageFromArray(random.standard_normal((SIZE,) * 3, dtype=np.float32))
            sitk.WriteImage(image, str(images / f"{name}_0000.nii.gz"))
        result = soften("--images", str(images))
        assert result.exit_code == 0, (result.output, result.exception)
        yield Path(os.environ["nnUNet_preprocessed"]) / NAME


def _with_statistics(plans: dict[str, Any]) -> None:
    """What nnU-Net's preprocessing asks a plan for; also of the teacher's, so that both fit."""
    plans["foreground_intensity_properties_per_channel"] = {"0": {}}
    for path in Path(os.environ["nnUNet_preprocessed"]).parent.rglob("*lans.json"):
        path.write_text(json.dumps(plans))


def soften(*options: str) -> Any:
    return CliRunner().invoke(
        cli.app, ["soften", "998", "3d_fullres", "0", "-device", "cpu", "--no-mirroring", *options]
    )


def step_gradients(made: DistillationTrainer, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Of one training step from the same weights."""
    weights = {name: value.clone() for name, value in made.network.state_dict().items()}
    made.on_train_epoch_start()
    made.train_step({**batch, "target": [target.clone() for target in batch["target"]]})
    found = [parameter.grad.clone() for parameter in made.network.parameters() if parameter.grad is not None]
    made.network.load_state_dict(weights)
    made.optimizer.state.clear()
    return found


def test_they_train_along_with_what_the_teacher_says(dataset: Path) -> None:
    made = ready("objectives.soft.alpha=0.5")
    folder = unlabelled_folder(made)
    assert folder == dataset / "unlabelled" / "nnUNetPlans_3d_fullres"
    made.on_train_start()
    keys = {str(key) for _ in range(30) for key in next(made.dataloader_train)["keys"]}
    assert keys == {*CASES[:4], "extra_0", "extra_1"}
    assert sorted(made.get_tr_and_val_datasets()[1].identifiers) == CASES[4:]
    assert made.soft_labels is not None
    data, segmentation, _, properties = preprocessed_cases(folder).load_case("extra_0")
    foreground = open_map(made.soft_labels, "extra_0")[:] / 255
    decided = np.concatenate([1 - foreground.sum(0, keepdims=True), foreground]).argmax(0)
    assert data.shape == segmentation.shape
    assert np.mean(segmentation[0] == decided) > 0.99  # ties of bytes apart
    for label in (1, 2):
        places = properties["class_locations"][label]
        assert all(segmentation[tuple(place)] == label for place in np.asarray(places)[:20])
    made.on_train_end()


def test_dummy_labels_change_no_gradient(dataset: Path) -> None:
    made = ready("objectives.soft.alpha=0.5")
    made.on_train_start()
    batch = next(made.dataloader_train)
    batch["keys"] = ["case_0", "extra_1"]
    own = step_gradients(made, batch)
    others = [target.clone() for target in batch["target"]]
    for target in others:
        target[1] = (target[1] + 1) % 3
    assert all(torch.equal(a, b) for a, b in zip(own, step_gradients(made, {**batch, "target": others}), strict=True))
    for target in others:
        target[0] = (target[0] + 1) % 3
    changed = step_gradients(made, {**batch, "target": others})
    assert not all(torch.equal(a, b) for a, b in zip(own, changed, strict=True))
    made.on_train_end()


@pytest.mark.parametrize("labelled", [(1, 1), (2, 1), (2, 0), (0, 0)])
def test_processes_with_unequally_many_labels_are_as_one(dataset: Path, labelled: tuple[int, int]) -> None:
    """Each has two samples; gradients are averaged over processes, as are losses."""
    made = ready("objectives.soft.alpha=0.5")
    loss, network, batch = made.loss.segmentation, made.network, random_batch(made)
    data, targets = (torch.cat([batch["data"]] * 2), [torch.cat([one, one.flip(0)]) for one in batch["target"]])
    output = [one.detach() for one in network(data)]
    places = [[2 * rank + place for place in range(count)] for rank, count in enumerate(labelled)]
    of_one = loss_of_labelled(loss, output, targets, [place for own in places for place in own])
    shares = [share_of_labels(count, labelled) for count in labelled]
    own = [loss_of_labelled(loss, output, targets, place) for place in places]
    of_all = sum(share * value for share, value in zip(shares, own, strict=True)) / 2
    assert float(of_all) == pytest.approx(float(of_one), rel=1e-6)


def test_a_processs_share_counts_in_its_step(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready("objectives.soft.alpha=0.5")
    made.on_train_start()
    batch = {**next(made.dataloader_train), "keys": ["case_0", "extra_1"]}
    terms = []
    for everyone in (None, [1, 1], [1, 3]):
        monkeypatch.setattr(made, "is_ddp", everyone is not None)
        monkeypatch.setattr("nnunet_kd.training.soft_labels.gather", lambda own, everyone=everyone: everyone)
        step_gradients(made, batch)
        terms.append(made.history.close_epoch(0)["segmentation"])
    monkeypatch.setattr(made, "is_ddp", False)
    assert terms[1] == terms[0]
    assert terms[2] == pytest.approx(terms[0] / 2)
    made.on_train_end()


def test_the_labels_loss_is_that_of_the_labelled_samples_alone(dataset: Path) -> None:
    made = ready("objectives.soft.alpha=0.25")
    made.on_train_start()
    batch = next(made.dataloader_train)
    for keys, labelled in ((["case_0", "extra_1"], [0]), (["extra_0", "case_2"], [1]), (["extra_0", "extra_1"], [])):
        made.on_train_epoch_start()
        weights = {name: value.clone() for name, value in made.network.state_dict().items()}
        loss = float(made.train_step({**batch, "keys": keys})["loss"])
        made.history.close_epoch(0)
        terms = made.history.epochs[-1]
        made.network.load_state_dict(weights)
        expected = 0.0
        if labelled:
            with torch.no_grad():
                output = made.network(batch["data"][labelled])
                expected = float(made.loss.segmentation(output, [target[labelled] for target in batch["target"]]))
        assert terms["segmentation"] == pytest.approx(expected, rel=1e-5)
        assert loss == pytest.approx(0.75 * expected + 0.25 * terms["soft"], rel=1e-5)
    made.on_train_end()


def test_objectives_that_read_labels_are_refused(dataset: Path) -> None:
    with pytest.raises(SettingsError, match="holds cases without labels, but ifvd depends on labels"):
        ready("objectives.soft.alpha=0.5", "objectives.ifvd.weight=1", trainer="nnUNetTrainerKD")


def test_too_little_memory_advises_what_keeps_them(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "available_bytes", lambda: 1)
    with pytest.raises(MissingRequirement, match="Lower nnUNet_n_proc_DA, or use a computer with more memory"):
        ready("objectives.soft.alpha=0.5")


def test_soften_notices_that_the_plan_was_changed(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "preprocessing_of", lambda plans, configuration: "another")
    result = soften()
    assert isinstance(result.exception, DataError)
    assert "2 cases without labels preprocessed before the plan was changed: extra_0, extra_1" in str(result.exception)


def test_other_trainers_do_not_see_them(dataset: Path) -> None:
    made = ready("objectives.soft.alpha=0", trainer=SOFT)
    training, _ = made.get_tr_and_val_datasets()
    assert sorted(training.identifiers) == CASES[:4]


def test_one_process_adds_images_and_the_others_wait(dataset: Path) -> None:
    made, images, told = ready(), dataset.parents[1] / "more", threading.Event()
    folder = unlabelled_folder(made)
    added: list[str] = []
    waits = threading.Thread(target=lambda: added.extend(add_images(made, images, lambda *progress: told.set())))
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        waits.start()
        assert told.wait(30)
        assert not added
    waits.join(30)
    assert added == ["extra_0", "extra_1"]
    assert not [path.name for path in folder.iterdir() if "lock" in path.name]


def test_an_image_called_as_a_case_is_refused(dataset: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((SIZE,) * 3, np.float32)), str(again / "case_1.nii.gz"))
    result = soften("--images", str(again))
    assert isinstance(result.exception, DataError)
    assert "called as cases of the dataset, for example case_1" in str(result.exception)


@pytest.mark.parametrize("labelled", [[0, 2], [1], []])
def test_the_loss_of_some_samples(labelled: list[int]) -> None:
    outputs = [torch.randn(3, 2, size, size, requires_grad=True) for size in (4, 2)]
    targets = [torch.randn(3, 2, size, size) for size in (4, 2)]

    def loss(output: Any, target: Any) -> torch.Tensor:
        return torch.stack([((o - t) ** 2).mean() for o, t in zip(output, target, strict=True)]).sum()

    found = loss_of_labelled(loss, outputs, targets, labelled)
    wanted = (
        sum(float(((o[labelled] - t[labelled]) ** 2).mean().detach()) for o, t in zip(outputs, targets, strict=True))
        if labelled
        else 0
    )
    assert float(found) == pytest.approx(wanted)
    found.backward()
    for output in outputs:
        assert output.grad is not None
        counted = output.grad.flatten(1).abs().sum(1) > 0
        assert counted.tolist() == [place in labelled for place in range(3)]


def test_a_written_segmentation_keeps_what_is_outside(dataset: Path) -> None:
    made = ready()
    folder = unlabelled_folder(made)
    before = np.asarray(preprocessed_cases(folder).load_case("extra_0")[1][:])
    decision = np.full(before.shape[1:], 2)
    write_segmentation(folder, "extra_0", decision, made.plans_manager.plans, "3d_fullres", DATASET_JSON)
    _, after, _, properties = preprocessed_cases(folder).load_case("extra_0")
    assert np.array_equal(after[:] == -1, before == -1)
    assert len(properties["class_locations"][1]) == 0
    assert len(properties["class_locations"][2]) == int((before != -1).sum())


def test_the_folder_of_cases_holds_nothing_else_at_any_moment(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net tells its format by the names of the files, and refuses the folder if there is one of another kind."""
    made = ready()
    folder = unlabelled_folder(made)
    seen, replace = [], os.replace

    def look(source: Path, target: Path) -> None:
        seen.append({path.suffix for path in folder.iterdir()})
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    shape = np.asarray(preprocessed_cases(folder).load_case("extra_0")[1][:]).shape[1:]
    write_segmentation(folder, "extra_0", np.ones(shape), made.plans_manager.plans, "3d_fullres", DATASET_JSON)
    assert seen == [{".b2nd", ".pkl"}] * 2


def test_what_a_killed_process_left_there_is_removed(dataset: Path) -> None:
    folder = unlabelled_folder(ready())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for place in (folder, folder.parent):
        (place / f"extra_0_seg.b2nd.{dead.pid}.tmp").write_bytes(b"half")
    result = soften()
    assert result.exit_code == 0, (result.output, result.exception)
    assert not [*folder.glob("*.tmp"), *folder.parent.glob("*.tmp")]


def test_folders_that_a_killed_preprocessing_left_there_are_removed(dataset: Path) -> None:
    made, images = ready(), dataset.parents[1] / "more"
    left = unlabelled_folder(made) / ".extra_2.a1b2c3d4"
    left.mkdir()
    (left / "extra_2.b2nd").touch()
    assert add_images(made, images, lambda *progress: None) == ["extra_0", "extra_1"]
    assert not left.exists()


def test_batches_of_all_kinds_of_loss(tiny: dict[str, Any]) -> None:
    """Without deep supervision the loss takes tensors, not lists."""
    made = ready_without_data("nnUNetTrainerSoft", tiny, deep_supervision=False)
    made.unlabelled = frozenset({"b"})
    made.enable_deep_supervision = False
    batch = {**random_batch(made), "keys": ["a", "b"]}
    assert made.labelled_samples(batch) == [0]
    assert made.labelled_samples({**batch, "keys": ["a", "a"]}) is None
    made.train_step(batch)
