"""The whole way, from a model and images to a student that stock nnU-Net and ONNX runtimes take."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.errors import DataError
from nnunet_kd.nnunet.datasets import case_names
from nnunet_kd.workflows.shrink import run as run_module
from nnunet_kd.workflows.shrink.dataset import split_cases
from nnunet_kd.workflows.shrink.model import find_teacher
from nnunet_kd.workflows.shrink.request import Places
from nnunet_kd.workflows.shrink.teacher import strange_volumes
from tests.workflows.shrink.tiny_shrink import (
    prepare,
    shrink,
    state_of,
    write_images,
    write_labels,
    write_model,
    zip_alone,
    zipped,
)


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(monkeypatch)


def test_images_alone_are_enough(tmp_path: Path) -> None:
    archive, images, output = zipped(write_model(tmp_path)), write_images(tmp_path / "images", 6), tmp_path / "out"
    result = shrink(archive, images, output, "--iterations", "2")
    assert result.exit_code == 0, (result.output, result.exception)
    with zipfile.ZipFile(output / "student.zip") as student:
        names = student.namelist()
        plans = json.loads(student.read("Dataset998_Tiny/nnUNetTrainerSoft__nnUNetPlans__3d_fullres/plans.json"))
    assert "Dataset998_Tiny/nnUNetTrainerSoft__nnUNetPlans__3d_fullres/fold_0/checkpoint_final.pth" in names
    features = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    assert features == [2, 4, 4]
    assert (output / "student.onnx").is_file()
    assert json.loads((output / "student.json").read_text())["onnx"]["precision"] == "float32"
    page = (output / "report.html").read_text()
    assert "Agreement with the teacher" in page
    assert "anterior" in page
    assert "Against labels" not in page
    agreement = json.loads((output / "agreement.json").read_text())
    assert len(agreement["cases"]) == 2  # a fifth of six, rounded up
    assert state_of(output)["values"]["schedule"] == {
        "epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1,
    }  # fmt: skip


def test_labels_of_some_images_train_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of three of five images, within a budget; and what the report says of images of another kind."""
    monkeypatch.setattr(run_module, "export_student", zip_alone)
    model = write_model(tmp_path)
    plans = json.loads((model / "plans.json").read_text())
    plans["original_median_spacing_after_transp"] = [9.0, 9.0, 9.0]
    (model / "plans.json").write_text(json.dumps(plans))
    images, output = write_images(tmp_path / "images"), tmp_path / "out"
    held_out = split_cases([f"patient_{number}" for number in range(5)], None).held_out
    others = [f"patient_{number}" for number in range(5) if f"patient_{number}" not in held_out]
    labels = write_labels(tmp_path / "labels", [*held_out, *others[:2]])
    arguments = (model, images, output, "--minutes", "0.5", "--labels", labels, "--set", "objectives.soft.alpha=0.5")
    result = shrink(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    values = state_of(output)["values"]
    assert values["schedule"] == {"epochs": 5, "iterations_per_epoch": 10, "validation_iterations": 1}  # the fewest
    assert values["step_times"]["iteration"] > 0
    assert "--minutes 0.5 leaves 0.0 minutes for the training" in result.output.replace("\n", " ")
    work = output / "work" / "nnUNet_preprocessed" / "Dataset998_Tiny"
    assert case_names(work / "nnUNetPlans_3d_fullres") == sorted([*held_out, *others[:2]])
    assert case_names(work / "unlabelled" / "nnUNetPlans_3d_fullres") == others[2:]
    (student,) = (output / "work" / "nnUNet_results").glob("*/*/fold_0")
    log = "".join(path.read_text() for path in student.glob("training_log*.txt"))
    assert "2 cases without labels train along" in log
    page = (output / "report.html").read_text()
    assert "Against labels" in page
    assert "was not written: not asked for here" in page
    assert "the teacher, and labels of 2 images" in page
    assert "agreement with it means nothing here" in page
    assert "voxel size of 5 of 5 images: 1 x 1 x 1 mm, and the model&#39;s training data 9 x 9 x 9 mm" in page
    assert "Not as the model was trained" in result.output.replace("\n", " ")
    again = shrink(*arguments)  # all is there: nothing is computed anew
    assert again.exit_code == 0, (again.output, again.exception)
    assert state_of(output)["values"]["step_times"] == values["step_times"]
    assert "50 iterations" in again.output


def test_a_teacher_that_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path)
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    for name, value in checkpoint["network_weights"].items():
        if "seg_layers" in name and name.endswith("bias"):
            value[0] = 100.0  # background everywhere
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    result = shrink(model, write_images(tmp_path / "images"), tmp_path / "out", "--iterations", "2")
    assert isinstance(result.exception, DataError)
    assert "the model finds nothing in 1 of 1 images kept aside" in str(result.exception)
    assert "go on with --allow-empty" in str(result.exception)

    def started(*arguments: Any, **options: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(run_module.training, "start_inside", started)
    names = [f"patient_{number}" for number in range(5)]
    labels = write_labels(tmp_path / "labels", names[:3])  # images with labels count, too
    more = ("--iterations", "2", "--allow-empty", "--labels", labels)
    said = shrink(model, tmp_path / "images", tmp_path / "other", *more).output.replace("\n", " ")
    assert "The model finds nothing in 4 of 4 training images: patient_" in " ".join(said.split())


def test_the_teachers_volumes(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    found = find_teacher(model, None, 4, False, Places(tmp_path / "out"))
    folder = write_labels(tmp_path / "said", ["a", "b"])  # two thirds of 1728 voxels of 1 mm: about 1.15 ml
    assert strange_volumes(folder, ["a", "b"], ".nii.gz", found) is None  # nothing is known
    (model / "fold_0" / "validation").mkdir()

    def references(voxels: int) -> None:
        case = {"reference_file": "x.nii.gz", "metrics": {"1": {"n_ref": voxels}, "2": {"n_ref": voxels}}}
        (model / "fold_0" / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": [case]}))

    references(600)
    assert strange_volumes(folder, ["a", "b"], ".nii.gz", found) is None
    references(100_000)
    told = strange_volumes(folder, ["a", "b"], ".nii.gz", found)
    assert told is not None
    assert "The references of its own validation have 200 to 200 ml" in told
