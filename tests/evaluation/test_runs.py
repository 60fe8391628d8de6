"""What is read from model folders, and the warnings that follow from it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from nnunet_kd.distillation.soft_labels.description import FILE, Description
from nnunet_kd.errors import CheckpointError, DataError, ModelError, SettingsError
from nnunet_kd.evaluation.run_warnings import find_warnings
from nnunet_kd.evaluation.runs import (
    Method,
    Run,
    attach_runs,
    fold_cases,
    parse_method,
    read_run,
    read_splits,
)
from tests.evaluation.helpers import write_model

SETTINGS = "teacher: {path: /models/teacher, sha256: abc123, fold: 1}\nreduction: 4.0\n"
SPLITS = [{"train": ["a", "b", "c"], "val": ["d", "e"]}, {"train": ["c", "d", "e"], "val": ["a", "b"]}]


@pytest.fixture
def model(tmp_path):
    history = [{"segmentation": -0.1, "dcd": 2.0, "dcd/stage0": 1.0}, {"segmentation": -0.3}]
    folder = tmp_path / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres"
    return write_model(folder, entry={"history": history, "clipped_steps": [0.5, float("nan"), 0.1]}, settings=SETTINGS)


def test_a_run_is_read_from_what_training_left(model):
    run = read_run(model, "0")
    assert run.dataset_name == "Dataset999_Shells"
    assert run.teachers == ({"path": "/models/teacher", "sha256": "abc123", "fold": 1},)
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    assert run.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert run.curves["pseudo Dice (averaged)"] == pytest.approx([0.1, 0.4, 0.6])
    assert run.curves["dcd loss"][0] == 2.0
    assert np.isnan(run.curves["dcd loss"][1])
    assert not any("stage0" in name for name in run.curves)
    assert run.curves["share of clipped steps"][::2] == [0.5, 0.1]
    assert run.clipped == pytest.approx(0.3), "of the epochs of which it is known"
    # two stages of one convolution with instance norm, transposed convolution, decoder convolution, one head
    expected = (27 * 4 + 4 + 8) + (27 * 4 * 8 + 8 + 16) + (8 * 8 * 4 + 4) + (27 * 8 * 4 + 4 + 8) + (4 * 3 + 3)
    assert run.parameters == expected


def test_a_model_folder_stands_for_its_validation_predictions(model):
    with pytest.raises(DataError, match="validation predictions of no fold"):
        parse_method(f"dcd={model}")
    (model / "fold_0" / "validation").mkdir()
    method = parse_method(f"dcd={model}")
    assert method.predictions == model / "fold_0" / "validation"
    assert method.run.fold == "0"
    assert parse_method(f"x={model / 'fold_0' / 'validation'}").run.teachers[0]["fold"] == 1
    with pytest.raises(DataError, match="validation predictions of fold_0"):
        parse_method(f"dcd={model}", fold="3")


def test_a_model_that_cannot_be_built_here_is_compared_all_the_same(model):
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["network_weights"] = {f"other.{name}": value for name, value in checkpoint["network_weights"].items()}
    torch.save(checkpoint | {"trainer_name": "nnUNetTrainerOfSomebody"}, path)
    run = read_run(model, "0")
    assert run.parameters is None
    assert run.checkpoint == path
    assert run.curves["dcd loss"][0] == 2.0


def test_predictions_elsewhere_have_no_run(tmp_path):
    (tmp_path / "predictions").mkdir()
    assert parse_method(f"dcd={tmp_path / 'predictions'}").run is None


def test_a_model_can_be_named_for_predictions_elsewhere(model, tmp_path):
    (tmp_path / "predictions").mkdir()
    methods = [parse_method(f"{name}={tmp_path / 'predictions'}") for name in ("student", "dcd")]
    student, dcd = attach_runs(methods, [f"dcd={model}"])
    assert student.run is None
    assert dcd.run.teachers[0]["sha256"] == "abc123"
    assert dcd.predictions == tmp_path / "predictions"
    with pytest.raises(SettingsError, match="with one of student, dcd"):
        attach_runs(methods, [f"typo={model}"])
    with pytest.raises(ModelError, match=r"--model dcd: .*has no fold_3"):
        attach_runs(methods, [f"dcd={model}"], fold="3")


@pytest.mark.parametrize("text", ["no-equals-sign", "=folder", "name="])
def test_methods_have_a_name_and_a_folder(text):
    with pytest.raises(SettingsError, match="name=FOLDER"):
        parse_method(text)


def test_absent_and_damaged_files_are_named(model, tmp_path):
    with pytest.raises(DataError, match=r"dcd: the folder .*absent does not exist"):
        parse_method(f"dcd={tmp_path / 'absent'}")
    (model / "fold_0" / "distillation_settings.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"distillation_settings\.yaml cannot be read"):
        read_run(model, "0")
    (model / "fold_0" / "distillation_settings.yaml").unlink()
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"checkpoint_final\.pth cannot be read"):
        read_run(model, "0")
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    assert read_run(model, "0").checkpoint is None


def test_folds(tmp_path):
    (tmp_path / "splits_final.json").write_text(json.dumps(SPLITS))
    splits = read_splits(tmp_path / "splits_final.json")
    assert fold_cases(splits, "1", "val") == {"a", "b"}
    assert fold_cases(splits, "all", "train") == set("abcde")
    with pytest.raises(SettingsError, match="no fold '2': the splits have folds 0 to 1"):
        fold_cases(splits, "2", "val")
    (tmp_path / "splits_final.json").write_text('[{"train": []}]')
    with pytest.raises(DataError, match=r"no splits_final\.json"):
        read_splits(tmp_path / "splits_final.json")


def test_a_teacher_that_had_seen_the_cases_is_told(tmp_path):
    seen = Method("dcd", tmp_path, Run(tmp_path, "0", "D", settings={"teacher": {"fold": 1}}))
    (warning,) = find_warnings([seen], ["d", "e"], SPLITS)
    assert "the teacher of dcd (fold 1) had seen 2 of the 2 cases" in warning
    every = Method("dcd", tmp_path, Run(tmp_path, "0", "D", settings={"teacher": {"fold": "all"}}))
    assert "(fold all) had seen 2 of the 2" in find_warnings([every], ["d", "e"], SPLITS)[0]
    right = Method("dcd", tmp_path, Run(tmp_path, "0", "D", settings={"teacher": {"fold": 0}}))
    assert find_warnings([right], ["d", "e"], SPLITS) == []
    undistilled = {"teacher": {"path": None, "fold": None, "sha256": None}}
    assert Run(tmp_path, "0", "D", settings=undistilled).teachers == ()
    # cases of a test set were in no one's training
    assert find_warnings([seen, every], ["x", "y"], SPLITS) == []


def test_without_splits_unlike_folds_are_told(tmp_path):
    unlike = Method("dcd", tmp_path, Run(tmp_path, "0", "D", settings={"teacher": {"fold": 1}}))
    assert "the teacher of dcd is of fold 1, dcd of fold 0" in find_warnings([unlike], ["d"], None)[0]
    everything = Method("teacher", tmp_path, Run(tmp_path, "all", "D"))
    assert "teacher was trained on all cases" in find_warnings([everything], ["d"], None)[0]


def test_a_method_that_was_trained_on_the_cases_is_told(tmp_path):
    (warning,) = find_warnings([Method("student", tmp_path, Run(tmp_path, "1", "D"))], ["c", "d", "x"], SPLITS)
    assert "student (fold 1) had seen 2 of the 3 cases" in warning


def test_students_of_different_teachers_are_told(tmp_path):
    runs = [Run(tmp_path, "0", "D", settings={"teacher": {"sha256": digest, "fold": 0}}) for digest in ("aaa", "bbb")]
    methods = [Method(name, tmp_path, run) for name, run in zip(("dcd", "cwd"), runs, strict=True)]
    assert "the students had different teachers (SHA-256 dcd aaa, cwd bbb)" in find_warnings(methods, ["d"], SPLITS)[0]


def test_several_teachers_are_each_looked_at(tmp_path):
    listed = [{"path": "a", "fold": 0, "sha256": "aaa"}, {"path": "b", "fold": 1, "sha256": "bbb"}]
    several = Method("dcd", tmp_path, Run(tmp_path, "0", "D", settings={"teacher": listed}))
    (warning,) = find_warnings([several], ["d", "e"], SPLITS)
    assert "teacher 2 of dcd (fold 1) had seen 2 of the 2 cases" in warning
    (warning,) = find_warnings([several], ["d", "e"], None)
    assert "teacher 2 of dcd is of fold 1, dcd of fold 0" in warning
    listed_otherwise = {"teacher": [listed[1] | {"fold": 0}, listed[0]]}
    same = Method("cwd", tmp_path, Run(tmp_path, "0", "D", settings=listed_otherwise))
    one = Method("logits", tmp_path, Run(tmp_path, "0", "D", settings={"teacher": listed[0]}))
    assert not any("different teachers" in text for text in find_warnings([several, same], ["d"], SPLITS))
    (different,) = find_warnings([same, one], ["d"], SPLITS)
    assert "different teachers (SHA-256 cwd aaa and bbb, logits aaa)" in different


def test_a_teacher_of_all_cases_is_told_without_splits(tmp_path):
    every = Method("dcd", tmp_path, Run(tmp_path, "0", "D", settings={"teacher": [{"path": "a", "fold": "all"}]}))
    assert "the teacher of dcd was trained on all cases" in find_warnings([every], ["d"], None)[0]


def soft_run(tmp_path, teachers, **soft):
    """A student of stored soft labels, as training leaves its settings."""
    description = Description(
        teachers=teachers, out_of_fold=False, mirror_axes=[], trained_mirror_axes=[], step_size=0.5, heads=["1"],
        has_regions=False, data={},
    )  # fmt: skip
    (tmp_path / FILE).write_text(description.model_dump_json())
    digest = hashlib.sha256((tmp_path / FILE).read_bytes()).hexdigest()
    settings = {"objectives": {"soft": {"alpha": 0.5, "maps": str(tmp_path), "maps_sha256": digest, **soft}}}
    return Method("soft", tmp_path, Run(tmp_path, "0", "D", settings=settings))


def soft_teacher(trained_on, sha256="a"):
    return {"sha256": sha256 * 64, "model": "M", "fold": 1, "checkpoint": "c.pth", "trained_on": trained_on}


def test_a_leak_of_soft_labels_is_told(tmp_path):
    leaking = soft_run(tmp_path, [soft_teacher(["c", "d"]), soft_teacher(["d", "e"], "b")], allow_leak=True)
    seen, allowed = find_warnings([leaking], ["d", "e"], SPLITS)
    assert "teachers of soft's soft labels had seen 2 of the 2 cases in training, so the results look better" in seen
    assert (
        "soft was trained with objectives.soft.allow_leak=true: teachers of its soft labels had seen these" in allowed
    )
    (allowed,) = find_warnings([leaking], ["x"], None)
    assert "had seen none of these cases" in allowed
    (tmp_path / FILE).unlink()
    (allowed,) = find_warnings([leaking], ["d", "e"], SPLITS)
    assert "objectives.soft.allow_leak=true: teachers of its soft labels may have seen these cases" in allowed


def test_soft_labels_that_were_deleted_are_told(tmp_path):
    one = soft_run(tmp_path, [soft_teacher(["c"])])
    (tmp_path / FILE).unlink()
    (told,) = find_warnings([one], ["d", "e"], SPLITS)
    assert (
        "whether teachers of soft's soft labels had seen the cases cannot be told: they are not where they were" in told
    )


def test_teachers_of_soft_labels_are_teachers(tmp_path):
    right = soft_run(tmp_path, [soft_teacher(["a", "b", "c"])])
    assert find_warnings([right], ["d", "e"], SPLITS) == []
    live = {"teacher": {"sha256": "b" * 64, "fold": 0}}
    other = Method("dcd", tmp_path, Run(tmp_path, "0", "D", settings=live))
    assert "different teachers (SHA-256 soft aaaaaaaaaaaa, dcd" in find_warnings([right, other], ["d"], SPLITS)[0]
    unknown = soft_run(tmp_path, [soft_teacher(None)])
    (told,) = find_warnings([unknown], ["d", "e"], SPLITS)
    assert "whether M/fold_1, of soft's soft labels, had seen the cases cannot be told" in told
    assert find_warnings([soft_run(tmp_path, [soft_teacher(["d"])], alpha=0)], ["d"], SPLITS) == []
