"""100 classes: what soft labels of them take, and that too much is refused before it begins."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.distillation.soft_labels import maps
from nnunet_kd.errors import MissingRequirement
from nnunet_kd.system.memory import forget_peak, peak_resident_bytes, resident_bytes
from nnunet_kd.training import soft_labels
from nnunet_kd.training.soft_label_loader import KEY
from nnunet_kd.workflows import soften as workflow
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders
from tests.conftest import make_plans
from tests.training.test_soft_labels import ready, soften
from tests.training.tiny_trainer import trainer
from tests.training.tiny_training import NAME, SIZE, write_tiny_dataset

CLASSES = 100
DATASET = {
    **DATASET_JSON,
    "labels": {"background": 0} | {f"organ {number}": number for number in range(1, CLASSES + 1)},
}
VOXELS = SIZE**3
BYTES = 17
"""By voxel and class."""


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Path]:
    """The folder of a dataset of 100 classes."""
    with nnunet_folders(tmp_path):
        write_tiny_dataset(dataset_json=DATASET)
        yield Path(os.environ["nnUNet_preprocessed"]) / NAME


def test_what_does_not_fit_is_refused_before_the_first_case(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk = VOXELS * (CLASSES + 1) * BYTES, 4 * VOXELS * CLASSES
    monkeypatch.setattr(workflow, "available_bytes", lambda: memory - 1)
    refused = soften("--no-mirroring").exception
    assert isinstance(refused, MissingRequirement)
    assert re.search(r"12 x 12 x 12 voxels, 101 classes\) takes about .* GiB of memory, and .* are free", str(refused))

    monkeypatch.setattr(workflow, "available_bytes", lambda: memory)
    with monkeypatch.context() as full:
        full.setattr(maps, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=disk - 1)))
        refused = soften("--no-mirroring").exception
    assert isinstance(refused, MissingRequirement)
    assert re.search(r"the maps may take up to .* GiB uncompressed, but .* has .* GiB free", str(refused))
    assert not list(many.glob("soft_labels/**/*")), "something was left behind"

    assert shutil.disk_usage(many).free > disk
    assert "4 cases written" in soften("--no-mirroring").output
    monkeypatch.setattr(workflow, "available_bytes", lambda: 1)
    assert soften("--no-mirroring").exception is None, "there is nothing left to make"
    monkeypatch.setattr(soft_labels, "available_bytes", lambda: 1 << 20)
    with pytest.raises(
        MissingRequirement, match=r"soft labels of 100 classes take about .* objectives\.soft\.source=live"
    ):
        ready()
    monkeypatch.setattr(soft_labels, "available_bytes", lambda: None)
    made = ready()
    made.on_train_start()
    batch = next(made.dataloader_train)
    assert batch[KEY].shape == (2, CLASSES, 8, 8, 8)
    made.on_train_epoch_start()
    made.train_step(batch)


def test_loaders_of_large_patches_are_counted(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "loader_processes", lambda: (4, 6))
    made = trainer("nnUNetTrainerSoft", make_plans(patch=(96, 96, 96)))
    _, _, initial, _ = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    cropped = 4 * CLASSES * 5 * int(torch.tensor(initial).prod())  # in 4 processes a byte and a float32
    batches = CLASSES * 4 * 2 * 96**3 * (4 * 2 + 6 + 1)  # 2 in every process, 6 that wait, 1 in training
    monkeypatch.setattr(soft_labels, "available_bytes", lambda: cropped + batches)
    made._check_memory(CLASSES)
    monkeypatch.setattr(soft_labels, "available_bytes", lambda: cropped + batches - 1)
    with pytest.raises(MissingRequirement, match=f"take about {(cropped + batches) / 2**30:.1f} GiB"):
        made._check_memory(CLASSES)


@pytest.mark.nightly
@pytest.mark.parametrize("teachers", [1, 2])
def test_a_case_takes_no_more_than_it_is_said_to(
    teachers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network apart, which is nnU-Net's: its logits are made up."""
    if not forget_peak():
        pytest.skip("only Linux forgets a peak")
    size = 64
    told: list[int] = []
    with nnunet_folders(tmp_path):
        write_tiny_dataset(dataset_json=DATASET, size=size)
        model = next((tmp_path / "nnUNet_results" / NAME).iterdir())
        if teachers == 2:
            shutil.copytree(model / "fold_0", model / "fold_1")

        def made_up(self: Any, image: torch.Tensor) -> torch.Tensor:
            told.append(resident_bytes())
            if len(told) == 1:
                forget_peak()
            logits = torch.empty((CLASSES + 1, *image.shape[1:]), dtype=torch.half)
            for channel in logits:
                channel.copy_(torch.randn(channel.shape) * 3)
            return logits

        monkeypatch.setattr(nnUNetPredictor, "predict_sliding_window_return_logits", made_up)
        result = soften("--no-mirroring", *(["-f", "0", "1", "--allow-leak"] if teachers == 2 else []))
        assert result.exit_code == 0, (result.output, result.exception)
        taken = peak_resident_bytes() - told[0]
    needed = size**3 * (CLASSES + 1) * BYTES
    print(f"{teachers} teachers: {taken / size**3 / (CLASSES + 1):.1f} bytes by voxel and class")
    assert 0.5 * needed < taken < 1.05 * needed
