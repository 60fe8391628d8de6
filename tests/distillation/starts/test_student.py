"""Students on disk as a start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.starts.student import pin_start, start_from_student
from nnunet_kd.errors import SettingsError
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.nnunet.checkpoints import WEIGHTS
from nnunet_kd.system.files import sha256
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


def test_a_fold_starts_from_its_own_checkpoint_whichever_it_has(folders: Path) -> None:
    model = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    final = model / "fold_0" / "checkpoint_final.pth"
    content = read_checkpoint(final)

    def write(path: Path) -> str:
        path.parent.mkdir(exist_ok=True)
        content[WEIGHTS]["decoder.seg_layers.0.bias"] += 1
        torch.save(content, path)
        return sha256(path)

    # the only one there is, whatever it is called
    assert pin_start(str(model), 1)[1] == sha256(final)
    best_of_1 = write(model / "fold_1" / "checkpoint_best.pth")
    assert pin_start(str(model), 1)[1] == best_of_1, (
        "a model with a finished fold, too, that has seen its validation cases"
    )
    assert pin_start(str(model), 0)[1] == sha256(final)
    of_all = write(model / "fold_all" / "checkpoint_final.pth")
    assert pin_start(str(model), "all")[1] == of_all
    with pytest.raises(SettingsError, match="has fold_0, fold_1, fold_all, but no checkpoint of fold 2; name one"):
        pin_start(str(model), 2)
    assert pin_start(str(model / "fold_1"), 2)[1] == best_of_1
    assert pin_start(str(model / "fold_1" / "checkpoint_best.pth"), 0)[1] == best_of_1
