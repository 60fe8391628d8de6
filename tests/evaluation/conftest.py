"""A dataset with predictions."""

from __future__ import annotations

import pytest

from tests.evaluation.helpers import write_dataset


@pytest.fixture
def dataset(tmp_path):
    """The raw folder; predictions are in ``tmp_path / "pred"``."""
    return write_dataset(tmp_path, methods={"pred": 0.5})
