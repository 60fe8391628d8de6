"""Models to be damaged, and what every refusal must be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd_runtime.command import main
from tests.runtime.exported import Pair, export, write_images


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model with two channels."""
    return export(tmp_path_factory.mktemp("model"), channels=2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 2)


@pytest.fixture
def model(pair: Pair, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    (tmp_path / "copy").mkdir()
    for path in (pair.onnx, pair.onnx.with_suffix(".json")):
        shutil.copy(path, tmp_path / "copy")
    return tmp_path / "copy" / pair.onnx.name


def refused(
    capsys: pytest.CaptureFixture[str], code: int, words: str, model: Path, *arguments: str | Path, output: Path
) -> None:
    """One line with these words, this exit code, and no segmentation."""
    assert main([str(model), *map(str, arguments), "-o", str(output), "--threads", "1"]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert words in errors[0], errors[0]
    assert not output.exists() or list(output.iterdir()) == []


def edit(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = model.with_suffix(".json")
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
