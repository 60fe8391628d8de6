"""A model, and nothing that takes long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.workflows.shrink import run as run_module
from tests.workflows.shrink.tiny_shrink import prepare, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends with an AssertionError where its checks are done."""
    prepare(monkeypatch)

    def computed(*arguments: Any, **options: Any) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(run_module.teacher, "predict_held_out", computed)
