"""Teachers whose network has no stage features, as Primus: they teach by their logits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.teacher import load_teacher
from nnunet_kd.errors import PlanError
from tests.cli.test_cli import run
from tests.distillation.test_teacher import change_checkpoint, locate, model
from tests.training.tiny_trainer import ready, steps, trainer

TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

class nnUNetTrainerWithoutStages(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, inputs, heads, enable_deep_supervision=True):
        return nn.Sequential(nn.Conv3d(inputs, heads, 3, padding=1))
"""


@pytest.fixture
def without_stages(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "nnUNetTrainerWithoutStages.py").write_text(TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder), prepend=os.pathsep)
    weights = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1)).state_dict()
    change_checkpoint(
        model() / "fold_0" / "checkpoint_final.pth",
        lambda found: found.update(network_weights=weights, trainer_name="nnUNetTrainerWithoutStages"),
    )
    return tiny


@pytest.mark.parametrize("method", ["Logits", "FiGKD"])
def test_objectives_on_logits_train(without_stages: dict, method: str) -> None:
    made = ready(f"nnUNetTrainer{method}", without_stages)
    assert all(torch.isfinite(torch.tensor(steps(made, 2))))
    assert made.history.close_epoch(0)[method.lower() if method == "FiGKD" else "logits"] > 0


def test_the_logits_are_the_networks(without_stages: dict) -> None:
    teacher = load_teacher(locate(), torch.device("cpu"))
    image = torch.randn(1, 1, 16, 16, 16)
    features, logits = teacher.outputs(image)
    assert features == []
    assert torch.equal(logits, teacher.network(image))


@pytest.mark.parametrize("name", ["nnUNetTrainerDCD", "nnUNetTrainerFoPro", "nnUNetTrainerFreeKD"])
def test_objectives_on_features_are_refused(without_stages: dict, name: str) -> None:
    with pytest.raises(PlanError, match=r"Sequential has no encoder.*-m logits"):
        trainer(name, without_stages).prepare_distillation()


def test_doctor_says_so(without_stages: dict) -> None:
    assert "a Sequential without stage features, which teaches by its logits alone" in run("doctor", "998").stdout
