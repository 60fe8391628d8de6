"""A student mirrors what its teacher's training mirrored."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainer_onlyMirror01,
    nnUNetTrainerNoMirroring,
)

from nnunet_kd.cli.doctor import _teacher as doctors_teacher
from nnunet_kd.errors import SettingsError
from nnunet_kd.evaluation.run_warnings import find_warnings
from nnunet_kd.evaluation.runs import Method, read_run
from nnunet_kd.workflows.bench.pair import DATASET_JSON, make_trainer
from tests.training.test_start import log_of
from tests.training.test_start import made as started
from tests.training.tiny_trainer import ready, trainer
from tests.workflows.sweep.test_runs import plan

CHOICES = {nnUNetTrainerNoMirroring.__name__: None, nnUNetTrainer_onlyMirror01.__name__: (0, 1)}


def mirrored_by(made: object) -> tuple[int, ...] | None:
    """What nnU-Net's loaders and its prediction are told."""
    axes = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3]  # type: ignore[attr-defined]
    assert made.inference_allowed_mirroring_axes == axes  # type: ignore[attr-defined]
    return axes


def fold_of_the_teacher(fold: int = 0) -> Path:
    model = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    return model / f"fold_{fold}"


def train_teacher_as(name: str, plans: dict, fold: int = 0) -> None:
    """Put into the teacher's checkpoint what a stock trainer of another kind would leave there."""
    other = make_trainer(name, plans, "3d_fullres", DATASET_JSON, torch.device("cpu"))
    path = fold_of_the_teacher(fold) / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["inference_allowed_mirroring_axes"] = mirrored_by(other)
    torch.save(content, path)


@pytest.mark.parametrize(("name", "axes"), CHOICES.items())
def test_a_teacher_that_knows_left_from_right(tiny: dict, name: str, axes: tuple | None) -> None:
    assert mirrored_by(ready("nnUNetTrainerDCD", tiny)) == (0, 1, 2)
    train_teacher_as(name, tiny)
    made = ready("nnUNetTrainerDCD", tiny)
    assert mirrored_by(made) == axes
    made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    saved = torch.load(Path(made.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert saved["inference_allowed_mirroring_axes"] == axes
    assert mirrored_by(ready("nnUNetTrainerStudent", tiny)) == (0, 1, 2)


def test_several_teachers_mirror_what_they_share(tiny: dict) -> None:
    shutil.copytree(fold_of_the_teacher(0), fold_of_the_teacher(1))
    train_teacher_as("nnUNetTrainer_onlyMirror01", tiny, fold=1)
    assert mirrored_by(ready("nnUNetTrainerDCD", tiny, "teacher.folds=[0,1]")) == (0, 1)


def test_settings_decide_and_a_foreign_axis_is_warned_about(tiny: dict, capsys: pytest.CaptureFixture[str]) -> None:
    train_teacher_as("nnUNetTrainer_onlyMirror01", tiny)
    assert mirrored_by(ready("nnUNetTrainerStudent", tiny, "mirror_axes=[]")) is None
    assert mirrored_by(ready("nnUNetTrainerDCD", tiny, "mirror_axes=[1]")) == (1,)
    assert "did not mirror" not in capsys.readouterr().out
    assert mirrored_by(ready("nnUNetTrainerDCD", tiny, "mirror_axes=[2,0,2]")) == (0, 2)
    assert "that the teacher's training did not mirror: 2" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="mirror_axes"):
        trainer("nnUNetTrainerDCD", tiny, "mirror_axes=[3]")


def test_patches_of_the_start_are_mirrored_as_those_of_training(dataset: Path) -> None:
    path = fold_of_the_teacher() / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "inference_allowed_mirroring_axes": None}, path)
    student = started("nnUNetTrainerDCD")
    told = re.findall(r"Mirrored axes: (.*\S)", log_of(student))
    assert (len(told), set(told)) == (3, {"none"}), "training, start, projections"


def test_a_sweeps_student_mirrors_what_the_others_mirror(tiny: dict) -> None:
    student, distilled = plan()
    assert student.settings["mirror_axes"] is distilled.settings["mirror_axes"] is None
    train_teacher_as("nnUNetTrainerNoMirroring", tiny)
    student, distilled = plan()
    assert student.settings["mirror_axes"] == []
    assert "mirror_axes=[]" in student.arguments
    assert distilled.settings["mirror_axes"] is None
    assert plan(settings={"mirror_axes": [0]})[0].settings["mirror_axes"] == [0]
    assert plan(methods=["student"])[0].settings == student.settings
    shutil.rmtree(fold_of_the_teacher())
    assert plan(methods=["student"])[0].settings["mirror_axes"] is None


def test_doctor_and_compare_tell(tiny: dict) -> None:
    assert "mirrors" not in doctors_teacher("998", "3d_fullres", "0", "nnUNetPlans", None)
    train_teacher_as("nnUNetTrainerNoMirroring", tiny)
    told = doctors_teacher("998", "3d_fullres", "0", "nnUNetPlans", None)
    assert "mirrors no axis" in told
    assert "say so: mirror_axes=[]; students can start inside it" in told
    student = ready("nnUNetTrainerStudent", tiny)
    mirrored_by(student)
    methods = [Method("teacher", Path(), read_run(fold_of_the_teacher().parent, "0"))]
    assert find_warnings(methods, [], None) == []
    student.save_checkpoint(str(Path(student.output_folder) / "checkpoint_final.pth"))
    folder = Path(student.output_folder_base)
    (folder / "plans.json").write_text(json.dumps(student.plans_manager.plans))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    methods.append(Method("student", Path(), read_run(folder, "0")))
    (warning,) = find_warnings(methods, [], None)
    assert "teacher none; student 0, 1, 2" in warning
