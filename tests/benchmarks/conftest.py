"""A sweep of the proof on disk, with trainings of every state."""

from __future__ import annotations

from pathlib import Path

import proof_keep
import proof_origin
import pytest

from nnunet_kd.nnunet.checkpoints import FINAL


@pytest.fixture
def origin() -> dict[str, str]:
    """Where a training comes from, made up."""
    return {name: f"this {name}" for name in proof_origin.COLUMNS}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder with three trainings: finished, without validation, and in somebody's hands."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    folder = proof_keep.sweep_folder("hippocampus")
    for seed in range(3):
        fold = folder / "plain" / f"seed_{seed}" / "Dataset004_Hippocampus" / "T__nnUNetPlans__3d_fullres" / "fold_0"
        (fold / "validation").mkdir(parents=True)
        (fold / FINAL).touch()
        if seed != 1:
            (fold / "validation" / "summary.json").touch()
    return folder
