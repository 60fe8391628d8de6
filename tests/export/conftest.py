"""One trained student for all tests of export and prediction."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployment import stock_prediction, train_student, write_cases


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained student's model folder with folds 0 and 1; read only."""
    return train_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of images and references; read only."""
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="session")
def stock(student: Path, cases: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's own predictions of fold 0, made once; read only."""
    return stock_prediction(student, cases[0], tmp_path_factory.mktemp("stock") / "out")
