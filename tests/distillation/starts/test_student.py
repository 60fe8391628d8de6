"""Students on disk as a start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.starts.student import pin_start, start_from_student
from nnunet_kd.errors import SettingsError
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.nnunet.checkpoints import WEIGHTS
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans


def test_weights_that_are_not_finite_are_refused(folders: Path) -> None:
    model = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    path, _ = pin_start(str(model), 0)
    assert path == str(model)
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    content = read_checkpoint(checkpoint)
    name = next(name for name in content[WEIGHTS] if name.startswith("decoder.stages"))
    content[WEIGHTS][name].flatten()[0] = float("nan")
    torch.save(content, checkpoint)
    told = rf"^start: {model} holds weights that are not finite \({name}.*training diverged.*Give random, teacher, or the path"
    with pytest.raises(SettingsError, match=told):
        pin_start(str(model), 0)
    network = torch.nn.Linear(1, 1)
    with pytest.raises(SettingsError, match=told):
        start_from_student(network, str(model), 0, None)
