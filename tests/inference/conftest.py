"""A trained student, its ONNX export, and what stock nnU-Net predicts with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnunet_kd.export.onnx_export import OnnxOptions, export_onnx
from nnunet_kd.models.folder import open_model
from tests.export.conftest import cases, stock, student

__all__ = ["cases", "stock", "student"]


@pytest.fixture(scope="session")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 as ONNX, its JSON beside it; read only."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="needs the extra onnx")
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    with open_model(student, ("0",)) as model:
        export_onnx(model, path, OnnxOptions())
    return path


@pytest.fixture
def images(cases: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the images, to be damaged."""
    return shutil.copytree(cases[0], tmp_path / "images")
