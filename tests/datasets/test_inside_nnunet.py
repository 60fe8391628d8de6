"""nnU-Net itself accepts the converted datasets, keeps the splits through preprocessing, and trains on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.datasets.brats2024 import convert_brats2024
from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.isles2022 import convert_isles2022
from tests.datasets.generated_downloads import brats_case, isles_case

ONE = ConversionOptions(processes=1)
PREPROCESS = (
    "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as run; run()"
)


def brats(source: Path) -> Path:
    for patient in range(5):
        for point in (100, 101):
            brats_case(source, f"BraTS-GLI-{patient:05d}-{point}", shape=(32, 32, 32))
    return source


def accepted_without_warnings(printed: str) -> bool:
    return "verify_dataset_integrity Done" in printed and "Warning:" not in printed and "WARNING" not in printed


@pytest.mark.nightly
def test_brats_from_conversion_to_a_training_split(source: Path, nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnUNet_preprocessed is not known yet when converting, so the splits come there with preprocessing."""
    preprocessed = nnunet.parent / "preprocessed"
    monkeypatch.delenv("nnUNet_preprocessed")
    summary = convert_brats2024([brats(source)], options=ONE)
    assert not any(preprocessed.iterdir())
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    options = ["-d", "501", "--verify_dataset_integrity", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    done = subprocess.run([sys.executable, "-c", PREPROCESS, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert accepted_without_warnings(done.stdout)
    folder = preprocessed / "Dataset501_BraTS2024"
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    content = json.loads((folder / "dataset.json").read_text())
    for fold in range(5):
        trainer = nnUNetTrainer(plans.copy(), "3d_fullres", fold, content, torch.device("cpu"))
        assert trainer.preprocessed_dataset_folder_base == str(folder)
        train, validation = trainer.do_split()
        assert {"train": train, "val": validation} == summary.splits[fold]
        assert not {name[:15] for name in train} & {name[:15] for name in validation}


@pytest.mark.slow
def test_regions_pass_the_integrity_check(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = convert_brats2024([brats(source)], regions=True, options=ONE).folder
    verify_dataset_integrity(str(folder), num_processes=1)
    assert accepted_without_warnings(capsys.readouterr().out)


@pytest.mark.nightly
@pytest.mark.parametrize("grid", ["dwi", "flair"])
def test_isles_passes_the_integrity_check(source: Path, capsys: pytest.CaptureFixture[str], grid: str) -> None:
    for number in range(5):
        isles_case(source, f"sub-strokecase000{number}", ending=".nii" if number == 0 else ".nii.gz")
    folder = convert_isles2022([source], grid=grid, options=ONE).folder  # type: ignore[arg-type]
    verify_dataset_integrity(str(folder), num_processes=1)
    assert accepted_without_warnings(capsys.readouterr().out)
