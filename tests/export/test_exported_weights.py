"""Which weights of which trainer are exported, and under which trainer's name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.errors import ModelError
from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer, nnunet_folders, write_untrained_teacher
from tests.conftest import make_plans
from tests.export.exporting import export, load


def test_any_model_folder_can_be_exported_and_shipped_trainers_keep_their_name(folders: Path, tmp_path: Path) -> None:
    teacher = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    assert load(export(teacher, tmp_path / "a") / "fold_0" / "checkpoint_final.pth")["trainer_name"] == "nnUNetTrainer"
    path = teacher / "fold_0" / "checkpoint_final.pth"
    checkpoint = load(path)
    for name, expected in (
        ("nnUNetTrainer_5epochs", "nnUNetTrainer_5epochs"),
        ("nnUNetTrainerOfMine", "nnUNetTrainer"),
    ):
        torch.save({**checkpoint, "trainer_name": name}, path)
        exported = export(teacher, tmp_path / name)
        assert load(exported / "fold_0" / "checkpoint_final.pth")["trainer_name"] == expected
    card = (exported / "README.md").read_text()
    assert "not validated" in card


OLD_SIGNATURE = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

class nnUNetTrainerOfNnunet26(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(
        architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels, num_output_channels,
        enable_deep_supervision=True,
    ):
        return get_network_from_plans(
            architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels,
            num_output_channels, allow_init=True, deep_supervision=enable_deep_supervision,
        )
"""


def test_a_trainer_with_the_signature_of_nnunet_2_6(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own trainers"
    own.mkdir()
    (own / "nnUNetTrainerOfNnunet26.py").write_text(OLD_SIGNATURE)
    monkeypatch.setenv("nnUNet_extTrainer", str(own), prepend=os.pathsep)
    teacher = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    path = teacher / "fold_0" / "checkpoint_final.pth"
    torch.save({**load(path), "trainer_name": "nnUNetTrainerOfNnunet26"}, path)
    exported = load(export(teacher, tmp_path / "out") / "fold_0" / "checkpoint_final.pth")
    assert exported["trainer_name"] == "nnUNetTrainer"


def test_weights_that_only_another_trainer_can_build_are_refused(folders: Path, tmp_path: Path) -> None:
    teacher = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    path = teacher / "fold_0" / "checkpoint_final.pth"
    checkpoint = load(path)
    checkpoint["network_weights"]["extra.weight"] = torch.zeros(3)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainerOfMine"}, path)
    with pytest.raises(ModelError, match="builds another network than the plan describes"):
        export(teacher, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_average_and_best(tmp_path: Path) -> None:
    with nnunet_folders(tmp_path):
        plans = make_plans()
        write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
        os.environ[SET_VARIABLE] = json.dumps(["ema=0.5", "reduction=2"])
        trainer = make_trainer("nnUNetTrainerDCD", plans, "3d_fullres", DATASET_JSON, torch.device("cpu"))
        trainer.prepare_distillation()
        with torch.no_grad():
            for weight in trainer.network.parameters():
                weight.add_(1.0)
        trainer.on_validation_epoch_start()  # the average takes the weights' place, as before every save
        folder = Path(trainer.output_folder)
        for name in ("final", "best"):
            trainer.save_checkpoint(str(folder / f"checkpoint_{name}.pth"))
        model = folder.parent
        (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
        (model / "dataset.json").write_text(json.dumps(DATASET_JSON))
        average = load(folder / "checkpoint_final.pth")
    exported = export(model, tmp_path / "ema", weights="ema")
    found = load(exported / "fold_0" / "checkpoint_final.pth")["network_weights"]
    in_training = average[ENTRY]["training_weights"]
    assert all(torch.equal(average["network_weights"][key], value) for key, value in found.items())
    assert any(not torch.equal(in_training[key], value) for key, value in found.items())
    assert "final" not in [path.stem for path in exported.iterdir()]
    assert "ema, moving average" in (exported / "README.md").read_text()
    best = export(model, tmp_path / "best", weights="best")
    assert [path.name for path in (best / "fold_0").glob("*.pth")] == ["checkpoint_best.pth"]
    assert "-chk checkpoint_best.pth" in (best / "README.md").read_text()


def test_ema_is_refused_for_plain_weights(student: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no moving average"):
        export(student, tmp_path / "out", weights="ema")
    with pytest.raises(ModelError, match=r"has no fold_X/checkpoint_best\.pth.*fold_0/checkpoint_final\.pth"):
        export(student, tmp_path / "out", weights="best")
