"""Models that can be shrunk, and those that cannot."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.errors import ModelError, PlanError
from nnunet_kd.workflows.shrink.model import find_teacher
from nnunet_kd.workflows.shrink.request import Places
from tests.workflows.shrink.tiny_shrink import (
    LONG,
    refused,
    shrink,
    tiny_plans,
    write_images,
    write_model,
    zipped,
)

pytestmark = pytest.mark.usefixtures("nothing_computed")


def rewrite(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    plans = json.loads((model / "plans.json").read_text())
    change(plans)
    (model / "plans.json").write_text(json.dumps(plans))


def test_several_configurations(model: Path, tmp_path: Path) -> None:
    archive = tmp_path / "both.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for configuration in ("3d_fullres", "2d"):
            for path in model.rglob("*"):
                if path.is_file():
                    name = f"D/nnUNetTrainer__nnUNetPlans__{configuration}/{path.relative_to(model)}"
                    file.write(path, name)
    images = write_images(tmp_path / "images")
    said = refused(ModelError, archive, images, tmp_path / "out")
    assert "holds several configurations: 2d, 3d_fullres. Choose one with -c" in said
    assert "holds none of configuration 3d_lowres" in refused(
        ModelError, archive, images, tmp_path / "out", "-c", "3d_lowres"
    )
    places = Places(tmp_path / "unpacked")
    found = find_teacher(archive, "3d_fullres", 4, False, places)
    assert found.configuration == "3d_fullres"
    with pytest.raises(ModelError, match="holds none of configuration 2d, only 3d_fullres"):  # what lies in its folder
        find_teacher(archive, "2d", 4, False, places)
    assert find_teacher(archive, "3d_fullres", 4, False, places).model.folder == found.model.folder
    folder = tmp_path / "results"
    shutil.copytree(model, folder / model.name)
    assert find_teacher(folder, None, 4, False, Places(tmp_path / "x")).model.folder == folder / model.name


def test_a_second_stage(tmp_path: Path) -> None:
    own = write_model(tmp_path)

    def change(plans: dict[str, Any]) -> None:
        lowres = json.loads(json.dumps(plans["configurations"]["3d_fullres"]))
        plans["configurations"]["3d_lowres"] = lowres
        plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"

    rewrite(own, change)
    said = refused(ModelError, own, write_images(tmp_path / "images"), tmp_path / "out")
    assert "is the second stage of a cascade (3d_fullres), which needs the segmentations of 3d_lowres" in said
    assert "Shrink 3d_lowres" in said


def test_a_student_and_what_is_no_model(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    student = tmp_path / model.name
    shutil.copytree(model, student)

    def change(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["nnunet_kd"] = {"reduction": 4}

    rewrite(student, change)
    assert "is a student already (channels divided by 4)" in refused(ModelError, student, images, tmp_path / "out")
    assert "does not exist" in refused(ModelError, tmp_path / "no.zip", images, tmp_path / "out")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    assert "is not a complete zip archive" in refused(ModelError, tmp_path / "broken.zip", images, tmp_path / "out")
    (tmp_path / "net.onnx").touch()
    assert "without its training plan" in refused(ModelError, tmp_path / "net.onnx", images, tmp_path / "out")
    assert "leaves less than one of 8 channels" in str(
        shrink(model, images, tmp_path / "out", "-r", "9", *LONG).exception
    )


def test_training_cases_are_known_by_name(tmp_path: Path) -> None:
    own = write_model(tmp_path, folds=2)
    assert not find_teacher(own, None, 4, False, Places(tmp_path / "out")).trained_on
    for fold, cases in enumerate((["a", "b"], ["c"])):
        (own / f"fold_{fold}" / "validation").mkdir()
        measured = [{"reference_file": f"x/{case}.nii.gz", "metrics": {}} for case in cases]
        (own / f"fold_{fold}" / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": measured}))
    teacher = find_teacher(own, None, 4, False, Places(tmp_path / "out"))
    assert teacher.trained_on == {"0": ["c"], "1": ["a", "b"]}
    splits = [{"train": ["p"], "val": ["q"]}, {"train": ["q"], "val": ["p"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    teacher = find_teacher(own, None, 4, False, Places(tmp_path / "out"))
    assert teacher.trained_on == {"0": ["p"], "1": ["q"]}


def test_a_zip_is_unpacked_once(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / model.name
    shutil.copytree(model, copy)
    archive, places = zipped(copy), Places(tmp_path / "out")
    first = find_teacher(archive, None, 4, False, places)
    before = first.model.checkpoint_path("0").stat().st_mtime_ns
    assert find_teacher(archive, None, 4, False, places).model.checkpoint_path("0").stat().st_mtime_ns == before
    (copy / "notes.txt").write_text("changed")
    other = find_teacher(zipped(copy), None, 4, False, places)
    assert other.model.folder != first.model.folder


def test_folders_around_the_model_may_have_any_name(model: Path, tmp_path: Path) -> None:
    """Also one with what parts trainer, plan and configuration in a model folder's name."""
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in model.rglob("*"):
            if path.is_file():
                file.write(path, f"my__export/model/{path.relative_to(model)}")
    found = find_teacher(archive, None, 4, False, Places(tmp_path / "out"))
    assert found.configuration == "3d_fullres"
    assert found.model.folder.name == "model"


@pytest.mark.parametrize("key", ["labels", "file_ending", "channel_names"])
def test_a_dataset_without_what_is_needed(key: str, tmp_path: Path) -> None:
    own = write_model(tmp_path)
    dataset = json.loads((own / "dataset.json").read_text())
    del dataset[key]
    (own / "dataset.json").write_text(json.dumps(dataset))
    said = refused(ModelError, own, write_images(tmp_path / "images"), tmp_path / "out")
    assert f"its dataset.json lacks {key}" in said


def test_a_network_in_which_no_student_can_start(tmp_path: Path) -> None:
    plans = tiny_plans()
    (described,) = plans["configurations"].values()
    described["architecture"]["arch_kwargs"]["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"
    model = write_model(tmp_path, plans)
    said = refused(PlanError, model, write_images(tmp_path / "images"), tmp_path / "out")
    assert "is followed by BatchNorm3d; only instance norm is supported. shrink needs that start" in said
    assert "start=random" not in said
