"""The hippocampus data are converted once, and again after a conversion that a kill cut off."""

from __future__ import annotations

import os
from pathlib import Path

import hippocampus
import pytest


def test_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw = tmp_path / "raw" / hippocampus.DATASET
    (tmp_path / "results" / hippocampus.DATASET).mkdir(parents=True)  # of an installed student
    asked: list[Path] = []

    def run(command: str, option: str, data: Path) -> None:
        asked.append(data)
        # nnU-Net refuses a number that one of its folders has
        assert not any(Path(os.environ[f"nnUNet_{name}"], hippocampus.DATASET).exists() for name in ("raw", "results"))
        raw.mkdir(parents=True)
        (raw / "dataset.json").touch()

    monkeypatch.setattr(hippocampus, "run", run)
    (raw / "imagesTr").mkdir(parents=True)  # cut off before its last file
    for _ in range(2):
        hippocampus.convert(tmp_path / "data")
    assert asked == [tmp_path / "data"]
    assert os.environ["nnUNet_results"] == str(tmp_path / "results")
