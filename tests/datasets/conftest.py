"""nnU-Net's folders and a place for the download, fresh for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders, empty; returns nnUNet_raw."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / "nnunet" / name).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / "nnunet" / name))
    return tmp_path / "nnunet" / "raw"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where a test builds its download."""
    folder = tmp_path / "download"
    folder.mkdir()
    return folder
