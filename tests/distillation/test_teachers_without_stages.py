"""Teachers whose network has no stage features, as Primus, or others than the student's: they teach by their logits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.teacher import load_teacher
from nnunet_kd.errors import PlanError, TeacherError
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_preprocessed
from tests.cli.test_cli import run
from tests.conftest import make_plans
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


# stages of other sizes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def other_strides(tiny: dict) -> dict:
    """A student's plan whose stages are halved along other axes than the teacher's that is there."""
    plans: dict = make_plans(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    write_preprocessed(plans, DATASET_JSON, "3d_fullres")
    return plans


@pytest.mark.parametrize("setting", ["Logits", "FiGKD", "CWD", "Soft objectives.soft.source=live"])
def test_logits_are_learned_from_a_teacher_with_other_strides(
    other_strides: dict, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *assignments = setting.split()
    made = trainer(f"nnUNetTrainer{name}", other_strides, "seed=1", *assignments)
    made.settings = made.settings.model_copy(update={"start": "teacher"})  # what recipes prefer
    made.prepare_distillation()
    assert made.settings.start == "random"
    assert "The recipe only prefers that start: training starts at random" in capsys.readouterr().out
    made.on_train_epoch_start()
    image = torch.randn(1, 1, 16, 16, 16)
    assert made.supervision is not None
    assert made.supervision.teachers is not None
    (teacher,) = made.supervision.teachers.members
    assert torch.equal(
        made.supervision.teachers.outputs(image, 0, features=False, logits=True)[1], teacher.network(image)
    )
    assert all(torch.isfinite(torch.tensor(steps(made, 2))))


@pytest.mark.parametrize("setting", ["DCD", "FoPro", "CWD objectives.cwd.maps=features"])
def test_features_are_not_compared_with_a_teachers_of_other_strides(other_strides: dict, setting: str) -> None:
    name, *assignments = setting.split()
    with pytest.raises(TeacherError, match=r"strides per stage: teacher .*its logits can: -m logits or -m figkd"):
        trainer(f"nnUNetTrainer{name}", other_strides, *assignments).prepare_distillation()


def test_doctor_tells_of_other_strides(other_strides: dict) -> None:
    assert (
        "teaches by its logits alone (-m logits or -m figkd), strides per stage: teacher" in run("doctor", "998").stdout
    )
