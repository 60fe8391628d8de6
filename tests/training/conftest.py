"""Datasets and teachers for trainings of a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, write_untrained_teacher
from tests.conftest import make_plans
from tests.training.tiny_training import NAME, SHORT, train, without_pictures, write_tiny_dataset


@pytest.fixture(scope="module")
def plans(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The plan of an untrained teacher on disk, with the module's ``FEATURES`` and ``PATCH``, where it names them."""
    features = getattr(request.module, "FEATURES", (8, 16, 16))
    made = make_plans(features=features, patch=getattr(request.module, "PATCH", (8, 8, 8)))
    with nnunet_folders(tmp_path_factory.mktemp("nnunet")):
        write_untrained_teacher(made, "3d_fullres", DATASET_JSON)
        yield made


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The preprocessed folder of a tiny dataset with an untrained teacher; trainings draw no pictures."""
    with nnunet_folders(tmp_path):
        write_tiny_dataset()
        without_pictures(monkeypatch)
        yield Path(os.environ["nnUNet_preprocessed"]) / NAME


@pytest.fixture
def results(dataset: Path) -> Path:
    """The folder of the tiny dataset's models."""
    return Path(os.environ["nnUNet_results"]) / NAME


@pytest.fixture
def student(results: Path) -> Path:
    """The checkpoint of a trained student."""
    train("nnUNetTrainerStudent", [*SHORT, "epochs=1"])
    return next(results.glob("nnUNetTrainerStudent*")) / "fold_0" / "checkpoint_final.pth"
