"""In which order the proof's rows are trained, and what is not trained again."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proof
import proof_keep
import pytest
import yaml

from nnunet_kd.workflows.sweep.description import SweepDescription

SOFT = {"objectives": {"soft": {"alpha": 0.5, "maps": "teacher_fold_0_mirrored"}}}


def described(**rows: dict[str, Any]) -> SweepDescription:
    return SweepDescription(
        dataset="1",
        configuration="2d",
        name="x",
        variants={name: {"method": "student", **row} for name, row in rows.items()},
        seeds=[0, 1, 2],
        settings={"epochs": 20},
    )


def test_what_is_kept_is_not_trained_again() -> None:
    rows = ["a", "b", "c", "d"]
    description = described(a={}, b={}, c={}, d={})
    assert proof.missing(description, rows, {}, {}) == [(rows, [0, 1, 2])]
    kept = {"a": {0, 1, 2}, "c": {1}, "teacher": set()}
    apart = [(["b"], [0, 1, 2]), (["c"], [0, 2]), (["d"], [0, 1, 2])]
    assert proof.missing(description, rows, kept, {}) == apart
    assert proof.missing(description, rows, {row: {0, 1, 2} for row in rows}, {}) == []


def test_what_is_finished_on_this_disk_does_not_divide_the_rows() -> None:
    rows = ["a", "b"]
    description = described(a={}, b={})
    together = [(["a", "b"], [0, 1, 2])]
    assert proof.missing(description, rows, {"a": {0, 1}}, {"a": {0, 1}}) == together
    assert proof.missing(description, rows, {"a": {0, 1}}, {"a": {0}}) == [(["a"], [2]), (["b"], [0, 1, 2])]
    # a seed that nobody lacks does not matter
    assert proof.missing(description, rows, {"a": {0, 1}, "b": {0}}, {"a": {1}}) == [(["a", "b"], [1, 2])]


def test_rows_without_soft_labels_come_first(sweep: Path, tmp_path: Path) -> None:
    description = described(plain={}, soft={"method": "soft", "settings": SOFT}, inherited={"method": "inherited"})
    queue = proof.queue("hippocampus", description, None)
    assert queue == [(["plain", "inherited"], [0, 1, 2]), (["soft"], [0, 1, 2])]


def test_a_row_that_is_described_otherwise_is_not_trained_on(tmp_path: Path) -> None:
    description = described(soft={"method": "soft", "settings": SOFT}, plain={})
    path = tmp_path / "proof-acdc" / "settings" / "soft.yaml"

    def contradiction(**kept: object) -> str | None:
        soft = {"alpha": 0.5, "maps": "$nnUNet_preprocessed/x/teacher_fold_0_mirrored_12ab", "every": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"epochs": 20, "objectives": {"soft": {**soft, **kept}}}))
        return proof_keep.contradiction("acdc", "soft", description, tmp_path)

    assert proof_keep.contradiction("acdc", "plain", description, tmp_path) is None
    assert proof_keep.contradiction("acdc", "plain", description, None) is None
    assert contradiction() is None
    told = contradiction(alpha=1, maps="$nnUNet_preprocessed/x/teacher_fold_0_not_mirrored_12ab")
    assert told is not None
    assert "acdc, soft: objectives.soft.alpha, objectives.soft.maps: not as in" in told


@pytest.fixture
def train(sweep: Path, tmp_path: Path, origin: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``proof.train`` with commands that only note what they were told and let ``meanwhile`` look once."""
    (tmp_path / "Dataset004_Hippocampus" / "sweeps").mkdir(exist_ok=True)
    proof_keep.write_origin(sweep, origin)
    monkeypatch.setattr(proof, "check_teacher", lambda dataset, predicted: None)
    monkeypatch.setattr(proof, "present_origin", lambda jobs, device: origin)
    options = Namespace(jobs=2, device="cpu", keep=tmp_path / "kept")

    def run(description: SweepDescription, failing: str = "") -> tuple[list[str], list[list[str]]]:
        told: list[list[str]] = []

        def code_of(*command: object, meanwhile: Callable[[], object] | None = None, **_: object) -> int:
            told.append([str(part) for part in command])
            if meanwhile is not None:
                meanwhile()
            return int(failing in told[-1])

        monkeypatch.setattr(proof, "code_of", code_of)
        return proof.train("hippocampus", description, options), told

    return run


def test_a_full_disk_does_not_end_trainings(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(name: str, target: Path) -> list[str]:
        raise OSError("no space left")

    monkeypatch.setattr(proof, "keep", keep)
    failed, told = train(described(plain={}))
    assert failed == ["hippocampus: no space left"]
    assert told[0][-6:] == ["--methods", "plain", "--seeds", "0,1,2", "--jobs", "2"]


def test_soft_labels_that_fail_leave_the_other_rows_alone(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "keep", lambda name, target: [])
    failed, told = train(described(soft={"method": "soft", "settings": SOFT}, plain={}), failing="soften")
    assert failed == ["hippocampus, soft: soft labels"]
    assert [one[1] for one in told] == ["sweep", "soften"]


def test_plain_longer_follows_the_minutes_that_were_measured_here(tmp_path: Path) -> None:
    told = SweepDescription(
        dataset="1", configuration="2d", name="x", seeds=[0], settings={"epochs": 20, "iterations_per_epoch": 100},
        variants={"plain-longer": {"method": "student", "settings": {"epochs": 26}}},
    )  # fmt: skip
    minutes = tmp_path / "proof-acdc" / "minutes.json"
    proof.check_longer("acdc", told, tmp_path)  # not measured yet
    minutes.parent.mkdir()
    for iterations in (2501, 2600):
        minutes.write_text(json.dumps({"rows": {"inherited-dcd": {"plain_iterations": iterations}}}))
        proof.check_longer("acdc", told, tmp_path)
    minutes.write_text(json.dumps({"rows": {"inherited-dcd": {"plain_iterations": 2601}}}))
    with pytest.raises(SystemExit, match=r"plain-longer has 26 epochs, .* hold 27 here\. Write epochs: 27"):
        proof.check_longer("acdc", told, tmp_path)
    proof.check_longer("acdc", described(plain={}), tmp_path)
