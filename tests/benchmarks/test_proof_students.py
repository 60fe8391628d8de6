"""The proof's students that lie in the repository, against the values kept of their trainings."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from proof_keep import SHOWN_SEED
from proof_values import CORE, KEPT, read_proof

from nnunet_kd.nnunet.checkpoints import FINAL

ARCHIVES = sorted((KEPT / "students").glob("*.zip"))
PARAMETERS = 351329
"""Of the reduced network of the hippocampus plan (docs/explanation-proof.md)."""


def member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The only file of an archive whose path ends so."""
    (found,) = [one for one in archive.infolist() if one.filename.endswith(f"/{name}")]
    return found


def test_one_student_of_every_row_and_all_together_are_small() -> None:
    rows = [row for row in CORE if SHOWN_SEED in read_proof("hippocampus").rows.get(row, {})]
    assert {path.stem for path in ARCHIVES} == set(rows)
    assert sum(path.stat().st_size for path in ARCHIVES) < 20e6


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
def test_nnunets_own_validation_is_what_was_kept(path: Path) -> None:
    kept = read_proof("hippocampus").rows[path.stem][SHOWN_SEED]
    with zipfile.ZipFile(path) as archive:
        summary = json.loads(archive.read(member(archive, "validation/summary.json")))
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(kept.per_case("dice")), abs=1e-9)


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
def test_only_the_weights_and_the_licence_are_inside(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert "license: CC-BY-SA-4.0" in archive.read(member(archive, "README.md")).decode()
        with archive.open(member(archive, FINAL)) as file:
            checkpoint = torch.load(file, weights_only=False)
    assert not checkpoint.get("optimizer_state")
    assert not checkpoint.get("grad_scaler_state")
    distinct = {one.data_ptr(): one.numel() for one in checkpoint["network_weights"].values()}
    assert sum(distinct.values()) == PARAMETERS
