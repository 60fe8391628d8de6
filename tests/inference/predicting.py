"""Predictions as tests make them, and those that are to be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.errors import DataError
from nnunet_kd.inference.session import RunOptions, RunResult, predict

Cases = tuple[Path, Path]


def run(inputs: Path | list[Path], output: Path, model: Path, **options: Any) -> RunResult:
    chosen = RunOptions(**{"threads": 1, "folds": () if model.suffix == ".onnx" else ("0",), **options})
    return predict([inputs] if isinstance(inputs, Path) else inputs, output, model, chosen)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def refuse(images: Path, model: Path, message: str, error: type[Exception] = DataError, **options: Any) -> None:
    output = images.parent / "refused"
    with pytest.raises(error, match=message):
        run(images, output, model, **options)
    assert [name for name in files(output) if name.endswith(".nii.gz")] == []
