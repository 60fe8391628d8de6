"""A sweep over the tiny dataset, with a training that takes no time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nnunet_kd.workflows.sweep.planned_run import PlannedRun

Program = tuple[str, ...]


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Program]:
    """``fake(runs, "dcd, fold 0, seed 1"="fail")``: the program that trains these runs, and how it ends."""

    def make(runs: Sequence[PlannedRun], **behaviour: str) -> Program:
        content = {
            str(run.folder): {"does": behaviour.get(str(run), "finish"), "settings": dict(run.settings)} for run in runs
        }
        file = tmp_path / "behaviour.json"
        file.write_text(json.dumps(content))
        return (sys.executable, str(Path(__file__).with_name("fake_training.py")), str(file))

    return make
