"""Which weights of which trainer are exported, and under which trainer's name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.errors import ModelError, SettingsError
from nnunet_kd.export.weights import told_weights
from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer, nnunet_folders, write_untrained_teacher
from tests.conftest import make_plans
from tests.export.exporting import export, load

cli._register()


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


@pytest.fixture
def two_checkpoints(folders: Path) -> Path:
    """A model folder of two folds, each with its final and its best weights."""
    model = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    shutil.copy(model / "fold_0" / "checkpoint_final.pth", model / "fold_0" / "checkpoint_best.pth")
    shutil.copytree(model / "fold_0", model / "fold_1")
    return model


def exported_by_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments), "--to", "nnunet"])


def test_the_card_says_which_checkpoint_was_exported(two_checkpoints: Path, tmp_path: Path) -> None:
    best = two_checkpoints / "fold_1" / "checkpoint_best.pth"
    assert exported_by_command(best, tmp_path / "best").exit_code == 0
    assert [str(path.relative_to(tmp_path / "best")) for path in (tmp_path / "best").glob("*/*.pth")] == [
        "fold_1/checkpoint_best.pth"
    ]
    (row,) = [line for line in (tmp_path / "best" / "README.md").read_text().splitlines() if line.startswith("| 1 |")]
    assert row.split(" | ")[4] == "best"
    assert exported_by_command(best, tmp_path / "again", "--weights", "best", "-f", "1").exit_code == 0
    assert told_weights("final", "checkpoint_latest.pth") == "checkpoint_latest"
    assert told_weights("ema", "checkpoint_final.pth") == "ema"


def test_options_that_contradict_the_path_are_refused(two_checkpoints: Path, tmp_path: Path) -> None:
    fold = two_checkpoints / "fold_1"
    for arguments, said in (
        (
            (fold / "checkpoint_best.pth", "--weights", "final"),
            r"--weights final stands for checkpoint_final\.pth, and",
        ),
        (
            (fold / "checkpoint_final.pth", "--weights", "best"),
            r"Leave --weights best out, or give the model folder, /",
        ),
        ((fold / "checkpoint_best.pth", "-f", "0"), r"-f 0: .*checkpoint_best\.pth is of fold 1 alone\. Leave -f out"),
        ((fold, "-f", "0", "1"), rf"-f 0 1: .*fold_1 is of fold 1 alone\. .*model folder, {two_checkpoints}\."),
    ):
        with pytest.raises(SettingsError, match=said):
            raise exported_by_command(arguments[0], tmp_path / "out", *arguments[1:]).exception or AssertionError
    assert not (tmp_path / "out").exists()


def test_a_model_folder_is_not_called_as_a_file(folders: Path, tmp_path: Path) -> None:
    teacher = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    refused = CliRunner().invoke(cli.app, ["export", str(teacher), str(tmp_path / "a.onnx"), "--to", "nnunet"])
    assert isinstance(refused.exception, SettingsError)
    assert "a name without .onnx, a .zip, or --to onnx" in str(refused.exception)
    assert not list(tmp_path.glob("a*"))


def test_cards_are_utf_8(folders: Path, tmp_path: Path) -> None:
    labels = {"background": 0, "w\u0105troba": 1, "\u015bledziona": 2}
    teacher = write_untrained_teacher(make_plans(), "3d_fullres", {**DATASET_JSON, "labels": labels})
    assert "w\u0105troba: 1" in (export(teacher, tmp_path / "out") / "README.md").read_bytes().decode("utf-8")
