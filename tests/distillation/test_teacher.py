"""Finding, checking and freezing teachers; every way a teacher can be wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.distillation.settings import TeacherSettings
from nnunet_kd.distillation.teacher import check_teacher, load_teacher
from nnunet_kd.distillation.teacher_source import TeacherSource, locate_teacher
from nnunet_kd.errors import TeacherError
from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.models.folder import open_model
from nnunet_kd.models.plans import reduce_plans
from nnunet_kd.models.training_cases import validation_cases
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import REAL_TEACHER, make_plans, needs_real_teacher


def results() -> Path:
    return Path(os.environ["nnUNet_results"])


NOT_UNPACKED = Path("/nowhere")


def locate(settings: TeacherSettings | None = None, fold: int = 0, unpack_to: Path = NOT_UNPACKED) -> TeacherSource:
    student = reduce_plans(make_plans(), 4)
    return locate_teacher(settings or TeacherSettings(), results(), student, "3d_fullres", fold, unpack_to)


def model(trainer: str = "nnUNetTrainer") -> Path:
    return results() / "Dataset998_Tiny" / f"{trainer}__nnUNetPlans__3d_fullres"


def rename(trainer: str) -> None:
    shutil.copytree(model(), model(trainer))


def test_found_by_dataset_plan_configuration_and_fold(tiny: dict) -> None:
    assert locate().checkpoint_path == model() / "fold_0" / "checkpoint_final.pth"


def test_plain_trainer_is_preferred_and_students_never(tiny: dict) -> None:
    rename("nnUNetTrainer_250epochs")
    rename("nnUNetTrainerStudent")
    student = model("nnUNetTrainerStudent") / "plans.json"
    student.write_text(json.dumps(reduce_plans(tiny, 4)))
    assert locate().model_folder == model()
    shutil.rmtree(model())
    assert locate().model_folder == model("nnUNetTrainer_250epochs")
    shutil.rmtree(model("nnUNetTrainer_250epochs"))
    with pytest.raises(TeacherError, match=r"Found but not usable: nnUNetTrainerStudent__.* \(a student\)"):
        locate()


def test_several_variants_are_listed(tiny: dict) -> None:
    rename("nnUNetTrainer_250epochs")
    rename("nnUNetTrainerDA5")
    shutil.rmtree(model())
    with pytest.raises(TeacherError, match=r"several teachers.*nnUNetTrainerDA5.*nnUNetTrainer_250epochs.*-t PATH"):
        locate()


def test_none_says_what_was_found_and_what_to_do(tiny: dict) -> None:
    with pytest.raises(TeacherError, match=r"no fold_3/checkpoint_final.pth, only fold_0.*nnUNetv2_train.*-t PATH"):
        locate(fold=3)
    (model() / "fold_0" / "checkpoint_final.pth").rename(model() / "fold_0" / "checkpoint_best.pth")
    with pytest.raises(TeacherError, match=r"fold_0 has no checkpoint_final.pth but checkpoint_best.pth"):
        locate()
    assert locate(TeacherSettings(checkpoint="checkpoint_best.pth")).checkpoint == "checkpoint_best.pth"
    with pytest.raises(TeacherError, match="nnUNet_results is not set"):
        locate_teacher(TeacherSettings(), None, reduce_plans(tiny, 4), "3d_fullres", 0, NOT_UNPACKED)


def test_pointed_at(tiny: dict, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / model().name
    shutil.move(model(), moved)
    for path in (moved, moved / "fold_0", moved / "fold_0" / "checkpoint_final.pth"):
        assert locate(TeacherSettings(path=str(path))).checkpoint_path == moved / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(TeacherError, match="does not exist"):
        locate(TeacherSettings(path=str(tmp_path / "nowhere")))
    loose = tmp_path / "checkpoint_final.pth"
    shutil.copy(moved / "fold_0" / "checkpoint_final.pth", loose)
    with pytest.raises(TeacherError, match="does not lie in a fold_X folder"):
        locate(TeacherSettings(path=str(loose)))
    with pytest.raises(TeacherError, match=r"no plans\.json"):
        locate(TeacherSettings(path=str(tmp_path)))


def make_zip(tmp_path: Path) -> Path:
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in model().rglob("*"):
            if file.is_file():
                archive.write(file, f"Dataset998_Tiny/{file.relative_to(model().parent)}")
    return path


def test_exported_zip(tiny: dict, tmp_path: Path) -> None:
    archive, target = make_zip(tmp_path), tmp_path / "a" / "unpacked"
    target.mkdir(parents=True)
    source = locate(TeacherSettings(path=str(archive)), unpack_to=target)
    assert load_teacher(source, torch.device("cpu")).channels == (8, 16, 32)
    assert sha256(source.checkpoint_path) == sha256(locate().checkpoint_path)
    assert validation_cases(source.model, "0") == []
    with zipfile.ZipFile(archive, "a") as opened:
        summary = {"metric_per_case": [{"reference_file": "x/case_7.nii.gz"}]}
        opened.writestr(f"Dataset998_Tiny/{model().name}/fold_0/validation/summary.json", json.dumps(summary))
        opened.writestr(f"Dataset998_Tiny/{model().name}/fold_0/validation/case_7.nii.gz", b"not taken")
    again = tmp_path / "again"
    again.mkdir()
    source = locate(TeacherSettings(path=str(archive)), unpack_to=again)
    assert validation_cases(source.model, "0") == ["case_7"]
    assert not list(again.rglob("*.nii.gz"))
    for path in (archive, model()):
        with pytest.raises(
            TeacherError,
            match=r"no fold_1/checkpoint_final\.pth, only fold_0, see `teacher\.fold` \(a teacher of another fold has seen",
        ):
            locate(TeacherSettings(path=str(path)), fold=1)
    with pytest.raises(TeacherError, match=r"fold_0 has no checkpoint_best\.pth but checkpoint_final\.pth"):
        locate(TeacherSettings(path=str(archive), checkpoint="checkpoint_best.pth"))
    of_another_fold = locate(TeacherSettings(path=str(archive), fold=0), fold=1, unpack_to=target)
    assert (of_another_fold.origin, of_another_fold.fold) == (archive, "0")
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(TeacherError, match="not a complete zip archive"):
        locate(TeacherSettings(path=str(archive)))


def test_frozen_features_are_the_encoders(tiny: dict) -> None:
    teacher = load_teacher(locate(), torch.device("cpu"))
    image = torch.randn(1, 1, 16, 16, 16)
    features = teacher.features(image)
    assert [feature.shape[1] for feature in features] == [8, 16, 32]
    assert all(not feature.requires_grad for feature in features)
    network = teacher.network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    weights = torch.load(locate().checkpoint_path, weights_only=False)["network_weights"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_only_the_encoder_runs(tiny: dict) -> None:
    teacher = load_teacher(locate(), torch.device("cpu"))
    teacher.network.decoder.forward = None  # would fail if called
    teacher.features(torch.randn(1, 1, 16, 16, 16))


def change_checkpoint(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "its 3000 bytes are no whole zip archive"),
        (lambda path: path.write_bytes(b""), "its 0 bytes are no whole zip archive"),
        (lambda path: change_checkpoint(path, lambda found: found.pop("network_weights")), "it has no network_weights"),
        (
            lambda path: change_checkpoint(path, lambda found: found["network_weights"].popitem()),
            r"Missing key\(s\) in state_dict: \"decoder.*The weights must be of the network that nnUNetTrainer builds",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_is_told_as_seen(
    tiny: dict, damage: Callable[[Path], object], seen: str
) -> None:
    damage(locate().checkpoint_path)
    with pytest.raises(TeacherError, match=f"the teacher cannot be loaded: .*{seen}") as caught:
        load_teacher(locate(), torch.device("cpu"))
    assert not re.search("damaged|copy it again|trust", str(caught.value))


def rename_trainer(found: dict[str, Any]) -> None:
    found["trainer_name"] = "nnUNetTrainer_2000epochs_NoMirroring_OfAnotherLab"


def test_a_teacher_whose_trainer_is_not_installed_is_built_from_its_plan(tiny: dict) -> None:
    image = torch.randn(1, 1, 16, 16, 16)
    expected = load_teacher(locate(), torch.device("cpu")).outputs(image)[1]
    change_checkpoint(locate().checkpoint_path, rename_trainer)
    teacher = load_teacher(locate(), torch.device("cpu"))
    assert torch.equal(teacher.outputs(image)[1], expected)
    assert teacher.mirror_axes == (0, 1, 2)
    assert "nnUNetTrainer_2000epochs_NoMirroring_OfAnotherLab" in teacher.warnings[0]


def test_else_which_trainer_and_where_to_put_its_file(tiny: dict) -> None:
    def change(found: dict[str, Any]) -> None:
        rename_trainer(found)
        weights = found["network_weights"]
        name = next(name for name in weights if name.startswith("encoder") and name.endswith("weight"))
        weights[name] = weights[name][:4]

    change_checkpoint(locate().checkpoint_path, change)
    with pytest.raises(
        TeacherError,
        match=r"(?s)Python file that defines the class nnUNetTrainer_2000epochs_NoMirroring_OfAnotherLab.*export "
        r"nnUNet_extTrainer=FOLDER.*size mismatch for encoder",
    ) as caught:
        load_teacher(locate(), torch.device("cpu"))
    assert "trust" not in str(caught.value)


def test_a_model_folder_may_have_any_name(tiny: dict, tmp_path: Path) -> None:
    renamed, link, archive = tmp_path / "my teacher", tmp_path / "link", tmp_path / "mine.zip"
    shutil.copytree(model(), renamed)
    link.symlink_to(model())
    with open_model(model()) as found:
        exported = export_folder(found, tmp_path / "shipped", FolderOptions())
        zipped = export_folder(found, tmp_path / "shipped.zip", FolderOptions())
    shutil.make_archive(str(archive.with_suffix("")), "zip", renamed)  # its files at the root of the archive
    for place in (renamed, renamed / "fold_0", link, link / "fold_0" / "checkpoint_final.pth", exported):
        source = locate(TeacherSettings(path=str(place)))
        assert source.configuration == "3d_fullres"
        assert check_teacher(source, reduce_plans(tiny, 4), "3d_fullres", DATASET_JSON) == ((), "")
    for place in (zipped, archive):
        with tempfile.TemporaryDirectory() as unpacked:
            source = locate(TeacherSettings(path=str(place)), unpack_to=Path(unpacked))
            assert source.configuration == "3d_fullres"
            assert load_teacher(source, torch.device("cpu")).channels == (8, 16, 32)


def test_a_renamed_student_is_no_teacher(tiny: dict, tmp_path: Path) -> None:
    renamed = tmp_path / "student"
    shutil.copytree(model(), renamed)
    (renamed / "plans.json").write_text(json.dumps(reduce_plans(tiny, 4)))
    with pytest.raises(TeacherError, match="holds a student of this package"):
        check_teacher(locate(TeacherSettings(path=str(renamed))), reduce_plans(tiny, 4), "3d_fullres", DATASET_JSON)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, "input channels: teacher 1, student 2"),
        ({"labels": {"background": 0, "posterior": 1, "anterior": 2}}, "labels: teacher"),
        ({"labels": {"background": 0, "tumour": 1}}, "labels: teacher"),
    ],
)
def test_teacher_of_other_data(tiny: dict, change: dict, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        check_teacher(locate(), reduce_plans(tiny, 4), "3d_fullres", {**DATASET_JSON, **change})


def test_everything_that_differs_is_named_at_once(tiny: dict) -> None:
    other: dict[str, Any] = make_plans(patch=(32, 16, 16), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    other["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    with pytest.raises(TeacherError, match=r"(?s)patch size.*spacing.*strides per stage.*same dataset and plan"):
        check_teacher(locate(), reduce_plans(other, 4), "3d_fullres", DATASET_JSON)
    check_teacher(locate(), reduce_plans(tiny, 4), "3d_fullres", DATASET_JSON)


def test_region_based_teacher(folders: Path) -> None:
    regions = {**DATASET_JSON, "labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    plans = make_plans()
    write_untrained_teacher(plans, "3d_fullres", regions)
    check_teacher(locate(), reduce_plans(plans, 4), "3d_fullres", regions)
    with pytest.raises(TeacherError, match="regions_class_order"):
        check_teacher(locate(), reduce_plans(plans, 4), "3d_fullres", {**regions, "regions_class_order": [2, 1]})


@needs_real_teacher
def test_the_real_teacher() -> None:
    source = locate_teacher(TeacherSettings(path=str(REAL_TEACHER)), None, {}, "3d_fullres", 0, NOT_UNPACKED)
    check_teacher(source, reduce_plans(source.plans(), 4), "3d_fullres", source.dataset_json())
    teacher = load_teacher(source, torch.device("cpu"))
    shapes = [tuple(feature.shape[1:]) for feature in teacher.features(torch.randn(1, 1, 40, 56, 40))]
    assert shapes == [(32, 40, 56, 40), (64, 20, 28, 20), (128, 10, 14, 10), (256, 5, 7, 5)]
