"""The bookkeeping of the proof's minutes; measuring them takes hours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import proof_datasets
import proof_minutes
import pytest

from nnunet_kd.workflows.sweep.description import SweepDescription


def described(weight: float) -> SweepDescription:
    rows = {
        "plain": {"method": "student"},
        "inherited-dcd": {"method": "dcd", "settings": {"objectives": {"dcd": {"weight": weight}}}},
    }
    return SweepDescription(
        dataset="1", configuration="2d", name="x", variants=rows, seeds=[0], settings={"epochs": 20}
    )


def test_all_cases_lie_on_the_line_of_two_measurements() -> None:
    assert proof_minutes.line_at(160, (1, 12.0), (20, 50.0)) == pytest.approx(10 + 160 * 2)


def test_soft_labels_are_timed_on_one_case_and_an_eighth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof_datasets.Dataset, "training_cases", [str(case) for case in range(128)])
    parts = []

    def seconds_of_part(dataset: object, mirroring: bool, count: int) -> float:
        parts.append(count)
        return 30 + 60 * 128 / count

    monkeypatch.setattr(proof_minutes, "seconds_of_part", seconds_of_part)
    assert proof_minutes.soften_seconds(proof_datasets.ACDC, True) == pytest.approx(30 + 60 * 128)
    assert parts == [128, 8]


def test_seconds_of_soft_labels_outlive_a_stop(
    tmp_path: Path, origin: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_minutes, "soften", lambda *told: 0)
    measured = iter([100.0, 50.0, 25.0])
    monkeypatch.setattr(proof_minutes, "soften_seconds", lambda *told: next(measured))
    path = tmp_path / "proof-acdc" / "soften.json"

    def seconds(mirroring: bool, **other: str) -> float:
        return proof_minutes.softened(proof_datasets.ACDC, mirroring, path, {**origin, **other})

    assert [seconds(True), seconds(True), seconds(False)] == [100, 100, 50]
    assert [seconds(True, processor="another"), seconds(False)] == [25, 50]


def test_a_row_that_is_described_otherwise_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "minutes.json"
    one = described(0.5)
    monkeypatch.setattr(proof_minutes, "described", lambda name: one)
    assert not proof_minutes.measured_already(path, "acdc", one)
    rows = {row: {"variant": proof_minutes.variant_told(variant, one.settings)} for row, variant in one.rows().items()}
    proof_minutes.write_json(path, {"rows": rows})
    assert proof_minutes.measured_already(path, "acdc", one)
    assert not proof_minutes.measured_already(path, "acdc", described(5))


def test_minutes_beside_those_of_another_machine_are_not_measured(tmp_path: Path, origin: dict[str, str]) -> None:
    proof_minutes.write_json(tmp_path / "proof-hippocampus" / "minutes.json", {**origin, "rows": {}})
    other = {**origin, "processor": "another"}
    asked = proof_minutes.of_another_machine
    assert asked(origin, "hippocampus-objectives", tmp_path) is None
    assert asked(other, "hippocampus", tmp_path) is None, "what is replaced itself"
    assert asked(other, "acdc", tmp_path) is None
    assert "processor: this processor there, another now" in str(asked(other, "hippocampus-objectives", tmp_path))


def test_a_segmentation_that_a_kill_cut_off_is_predicted_again(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps("not an image").encode())
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "summary.json").write_text("{}")
    proof_datasets.remove_damaged(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
