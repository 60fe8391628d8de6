"""Teachers from strangers: checkpoints that are code, archives that write elsewhere."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.teacher import load_teacher, pin_teacher
from nnunet_kd.errors import TeacherError
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.doctor import describe_teacher
from tests.distillation.test_teacher import locate, make_zip, model
from tests.models.test_checkpoint import RAN, Malicious
from tests.training.tiny_trainer import trainer


@pytest.fixture
def stranger(tiny: dict) -> Path:
    """The teacher, its checkpoint now with code in it."""
    RAN.clear()
    path = model() / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["surprise"] = Malicious()
    torch.save(checkpoint, path)
    return path


def test_a_teacher_that_is_code_is_refused(stranger: Path) -> None:
    with pytest.raises(TeacherError, match=r"holds more than data.*teacher\.trusted=true"):
        load_teacher(locate(), torch.device("cpu"))
    assert RAN == []


def test_unless_it_is_trusted(stranger: Path, tiny: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert pin_teacher(locate(), TeacherSettings(trusted=True)).trusted
    made = trainer("nnUNetTrainerDCD", tiny, "teacher.trusted=true")
    made.prepare_distillation()
    assert RAN
    assert "loaded as code" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "C:\\outside.txt", "..\\b"])
def test_an_archive_that_leaves_its_folder_is_refused(tiny: dict, tmp_path: Path, name: str) -> None:
    archive, target = make_zip(tmp_path), tmp_path / "a" / "unpacked"
    target.mkdir(parents=True)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, "must not be unpacked")
    with pytest.raises(TeacherError, match="lies outside of the folder"):
        locate(TeacherSettings(path=str(archive)), unpack_to=target)
    assert list(target.iterdir()) == []


def test_a_model_may_not_hide_in_such_a_path(tiny: dict, tmp_path: Path) -> None:
    archive, target = tmp_path / "export.zip", tmp_path / "a" / "unpacked"
    target.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as opened:
        for file in (path for path in model().rglob("*") if path.is_file()):
            opened.write(file)
            opened.filelist[-1].filename = f"../../{file.relative_to(model().parent)}"
    with pytest.raises(TeacherError, match="lies outside of the folder"):
        locate(TeacherSettings(path=str(archive)), unpack_to=target)
    assert sorted(path.name for path in tmp_path.rglob("*.pth")) == ["checkpoint_final.pth"]  # the original


def test_doctor_tells_the_hash_of_what_it_loads(tiny: dict) -> None:
    assert sha256(locate().checkpoint_path) in describe_teacher("998", "3d_fullres", "0", "nnUNetPlans", None)


def test_doctor_lays_a_path_over_the_settings_as_a_training_does(tiny: dict) -> None:
    described = model()
    (described / "fold_0").rename(described / "fold_all")
    folder = Path(os.environ["nnUNet_preprocessed"]) / tiny["dataset_name"]
    (folder / "nnunet_kd.yaml").write_text("teacher: {fold: all}")
    assert "fold_all" in describe_teacher("998", "3d_fullres", "0", "nnUNetPlans", str(described))
