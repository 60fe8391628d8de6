"""The whole way, from a model and images to a student that stock nnU-Net and ONNX runtimes take."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.workflows.shrink.tiny_shrink import (
    prepare,
    shrink,
    state_of,
    write_images,
    write_model,
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
