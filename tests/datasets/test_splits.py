from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_kd.datasets.brats2024 import convert_brats2024
from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.splits import (
    grouped_folds,
    grouped_holdout,
    groups_by_regex,
    splits_files,
    training_cases,
    write_splits,
)
from nnunet_kd.errors import DataError, SettingsError
from tests.datasets.generated_downloads import brats_case

# 60 patients with one to five time points
CASES = [f"BraTS-GLI-{patient:05d}-{100 + point}" for patient in range(60) for point in range(1 + patient % 5)]
GROUPS = groups_by_regex(CASES, r"GLI-(\d{5})")


def test_no_patient_on_both_sides_and_every_case_once() -> None:
    splits = grouped_folds(GROUPS)
    assert len(splits) == 5
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(CASES)
        assert not {GROUPS[case] for case in fold["train"]} & {GROUPS[case] for case in fold["val"]}
        assert 0.1 < len(fold["val"]) / len(CASES) < 0.3
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(CASES)


def test_seed_decides_and_order_of_the_cases_does_not() -> None:
    backwards = dict(reversed(GROUPS.items()))
    assert grouped_folds(GROUPS) == grouped_folds(backwards)
    assert grouped_folds(GROUPS, seed=1) != grouped_folds(GROUPS, seed=2)
    assert grouped_holdout(GROUPS, 0.2, seed=1) != grouped_holdout(GROUPS, 0.2, seed=2)


def test_shuffled_not_in_the_order_of_the_names() -> None:
    first = {GROUPS[case] for case in grouped_folds(GROUPS)[0]["val"]}
    assert first != set(sorted(set(GROUPS.values()))[:12])


def test_holdout_is_the_share_of_the_patients() -> None:
    (fold,) = grouped_holdout({f"sub-{n:03d}": str(n) for n in range(250)}, 0.2)
    assert (len(fold["train"]), len(fold["val"])) == (200, 50)  # ISLES 2022 in the DCD paper
    (fold,) = grouped_holdout(GROUPS, 0.2)
    assert len({GROUPS[case] for case in fold["val"]}) == 12
    assert not {GROUPS[case] for case in fold["train"]} & {GROUPS[case] for case in fold["val"]}


@pytest.mark.parametrize("share", [0, 1, -0.2, 20])
def test_holdout_outside_of_0_to_1(share: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        grouped_holdout(GROUPS, share)


def test_too_few_patients() -> None:
    with pytest.raises(DataError, match="5 folds cannot be made of 2 patients"):
        grouped_folds({"a1": "a", "a2": "a", "b1": "b"})
    with pytest.raises(DataError, match="cannot be held out"):
        grouped_holdout({"a1": "a", "b1": "b"}, 0.999)
    for split in (grouped_folds, lambda groups: grouped_holdout(groups, 0.34)):  # no share helps
        with pytest.raises(DataError, match=r"at least two patients, but all cases \(2\) are of one. Give all cases"):
            split({"a1": "a", "a2": "a"})


def test_regex() -> None:
    assert groups_by_regex(["p1_x", "p1_y"], "p1") == {"p1_x": "p1", "p1_y": "p1"}
    with pytest.raises(SettingsError, match="is not a regular expression"):
        groups_by_regex(CASES, "(")
    with pytest.raises(DataError, match=r"finds no patient in 1 case name, for example other"):
        groups_by_regex([*CASES, "other"], r"GLI-(\d{5})")
    with pytest.raises(DataError, match="finds no patient"):
        groups_by_regex(["ax"], "a(b)?")


def test_written_for_both_orders_of_preprocessing(source: Path, nnunet: Path) -> None:
    for patient in range(5):
        for point in (100, 101):
            brats_case(source, f"BraTS-GLI-{patient:05d}-{point}")
    summary = convert_brats2024([source], options=ConversionOptions(processes=1))
    files = [nnunet / "Dataset501_BraTS2024", nnunet.parent / "preprocessed/Dataset501_BraTS2024"]
    assert [json.loads((folder / "splits_final.json").read_text()) for folder in files] == [summary.splits] * 2
    assert training_cases("501") == ("Dataset501_BraTS2024", summary.training)


def test_without_nnunet_preprocessed_only_beside_the_raw_data(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    assert write_splits("Dataset009_X", grouped_folds(GROUPS)) == [nnunet / "Dataset009_X/splits_final.json"]


def test_other_splits_are_replaced_only_when_asked(nnunet: Path) -> None:
    first, second = grouped_folds(GROUPS, seed=1), grouped_folds(GROUPS, seed=2)
    files = write_splits("Dataset009_X", first)
    write_splits("Dataset009_X", first)
    with pytest.raises(DataError, match="other splits"):
        write_splits("Dataset009_X", second)
    files[0].write_text("not json")
    with pytest.raises(DataError, match="other splits"):
        write_splits("Dataset009_X", first)
    write_splits("Dataset009_X", second, overwrite=True)
    assert all(json.loads(file.read_text()) == second for file in files)


def test_cases_of_any_dataset(nnunet: Path) -> None:
    linked = nnunet / "Dataset010_Linked"
    linked.mkdir()
    (linked / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "dataset": {"b": {}, "a": {}}}))
    assert training_cases("10") == ("Dataset010_Linked", ["a", "b"])
    only_preprocessed = nnunet.parent / "preprocessed/Dataset011_Moved"
    (only_preprocessed / "gt_segmentations").mkdir(parents=True)
    (only_preprocessed / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    (only_preprocessed / "gt_segmentations/case_1.nii.gz").touch()
    assert training_cases("Dataset011_Moved") == ("Dataset011_Moved", ["case_1"])
    assert splits_files("Dataset011_Moved") == [
        only_preprocessed / "splits_final.json"
    ]  # no empty raw dataset beside it
    for content in ("not json", "{}", "[]"):
        (linked / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=r"is not an nnU-Net v2 dataset.json"):
            training_cases("10")
    for wrong in ("12", "brats", "Dataset013_No"):
        with pytest.raises(DataError):
            training_cases(wrong)


def test_files_that_programs_leave_behind_are_no_cases(nnunet: Path) -> None:
    folder = nnunet / "Dataset055_Mac"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    for name in ("case0", "case1"):
        for prefix in ("", "._"):
            (folder / "imagesTr" / f"{prefix}{name}_0000.nii.gz").touch()
    assert training_cases("55") == ("Dataset055_Mac", ["case0", "case1"])
