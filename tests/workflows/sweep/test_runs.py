"""Planning: where runs lie, what they are told, and what contradicts them on disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE, resolve_settings
from nnunet_kd.errors import MissingRequirement, SettingsError, TeacherError
from nnunet_kd.models.plans import named_student_plans, write_plans
from nnunet_kd.nnunet.environment import find_trainer, method_trainer
from nnunet_kd.workflows.sweep.command import run_sweep
from nnunet_kd.workflows.sweep.description import describe_sweep
from nnunet_kd.workflows.sweep.planned_run import PlannedRun
from nnunet_kd.workflows.sweep.runs import plan_sweep

LEAST = {"dataset": "998", "configuration": "3d_fullres", "methods": ["student", "dcd"], "device": "cpu"}


def plan(**changes: object) -> list[PlannedRun]:
    return plan_sweep(describe_sweep(None, {**LEAST, **changes}))


def settings_of(run: PlannedRun) -> dict:
    """What the run's own arguments mean to ``nnunet-kd train``."""
    given = [after for option, after in zip(run.arguments, run.arguments[1:], strict=False) if option == "--set"]
    trainer = find_trainer(method_trainer(run.method))
    return resolve_settings(trainer.recipe, trainer.objectives, environment={SET_VARIABLE: json.dumps(given)}).as_dict()


def save_settings(run: PlannedRun, **changes: object) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "distillation_settings.yaml").write_text(yaml.safe_dump({**run.settings, **changes}))


def test_every_run_has_its_own_results_and_says_its_settings(tiny: dict) -> None:
    variants = {"dcd-S": {"method": "dcd", "settings": {"objectives": {"dcd": {"bands": "S"}}}}}
    runs = plan(variants=variants, seeds=[0, 5], settings={"epochs": 3, "learning_rate": 1e-5})
    assert [str(run) for run in runs] == [
        f"{name}, fold 0, seed {seed}" for name in ("student", "dcd", "dcd-S") for seed in (0, 5)
    ]
    sweep = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "sweeps", "3d_fullres")
    last = runs[-1]
    assert last.results == sweep / "dcd-S" / "seed_5"
    assert last.folder == last.results / "Dataset998_Tiny" / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0"
    assert len({run.results for run in runs}) == 6
    for run in runs:
        assert settings_of(run) == run.settings
        assert run.settings["epochs"] == run.epochs == 3
        assert run.state() == "todo"
    assert last.settings["seed"] == 5
    assert last.settings["objectives"]["dcd"]["bands"] == "S"
    teacher = last.settings["teacher"]
    assert (teacher["fold"], len(teacher["sha256"])) == (0, 64)
    assert runs[0].settings["teacher"]["path"] is None


def test_the_callers_recipe_is_said_openly(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 4\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(recipe))
    run = plan()[0]
    assert run.epochs == 4
    assert run.arguments[run.arguments.index("--recipe") + 1] == str(recipe)


def test_every_fold_has_its_own_teacher(tiny: dict) -> None:
    teacher = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    with pytest.raises(TeacherError, match="fold 1"):
        plan(folds=[0, 1])
    shutil.copytree(teacher / "fold_0", teacher / "fold_1")
    elsewhere = teacher.rename(teacher.parents[1] / teacher.name)
    runs = plan(folds=[0, 1], methods=["dcd"], teacher=str(elsewhere))
    assert [run.settings["teacher"]["fold"] for run in runs] == [0, 1]
    assert {run.settings["teacher"]["path"] for run in runs} == {str(elsewhere.resolve())}
    splits = Path(os.environ["nnUNet_preprocessed"], "Dataset998_Tiny", "splits_final.json")
    splits.write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    with pytest.raises(SettingsError, match="no fold '1'"):
        plan(folds=[0, 1], methods=["dcd"], teacher=str(elsewhere))


def test_a_run_without_a_teacher_continues_in_a_sweep_that_names_one(tiny: dict) -> None:
    teacher = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    for run in plan(teacher=str(teacher)):
        assert settings_of(run) == run.settings
        save_settings(run, **settings_of(run))
    student, distilled = plan(teacher=str(teacher))
    assert student.settings["teacher"]["path"] is None
    assert distilled.settings["teacher"]["path"] == str(teacher)


def test_other_settings_on_disk_are_refused(tiny: dict) -> None:
    run = plan()[1]
    save_settings(run)
    assert len(plan()) == 2
    with pytest.raises(SettingsError, match=r"dcd, fold 0, seed 0 .*ema: there null, asked for 0\.5"):
        plan(settings={"ema": 0.5})
    save_settings(run, teacher={**run.settings["teacher"], "path": "/moved/since"})
    assert len(plan()) == 2
    save_settings(run, teacher={**run.settings["teacher"], "sha256": "0" * 64})
    with pytest.raises(SettingsError, match=r"teacher\.sha256: there \"0000"):
        plan()
    (run.folder / "distillation_settings.yaml").unlink()
    (run.folder / "checkpoint_final.pth").touch()
    with pytest.raises(SettingsError, match="its settings are not known"):
        plan()


def test_another_training_under_the_same_name_is_refused(tiny: dict) -> None:
    old = plan(methods=[], variants={"mine": {"method": "dcd"}})[0]
    save_settings(old)
    with pytest.raises(SettingsError, match="another method, plan or configuration"):
        plan(methods=[], variants={"mine": {"method": "student"}})


def test_a_students_plan_says_its_reduction(tiny: dict) -> None:
    folder = Path(os.environ["nnUNet_preprocessed"], "Dataset998_Tiny")
    write_plans(named_student_plans(tiny, 2), folder / "nnUNetPlans_r2.json")
    (run,) = plan(methods=["student"], plans="nnUNetPlans_r2")
    assert run.settings["reduction"] == 2
    save_settings(run, reduction=4.0)  # an older version saved its default, which was not what it trained
    plan(methods=["student"], plans="nnUNetPlans_r2")
    wide = {"wide": {"method": "student", "settings": {"reduction": 8}}}
    with pytest.raises(SettingsError, match="reduction=8: the plan is a student's of reduction 2"):
        plan(methods=[], variants=wide, plans="nnUNetPlans_r2")


def test_a_method_that_takes_its_objectives_from_settings_needs_some(tiny: dict) -> None:
    with pytest.raises(SettingsError, match="takes its objectives from the settings"):
        plan(methods=["kd"])


def test_a_start_inside_the_teacher_is_pinned_like_a_teacher(tiny: dict) -> None:
    (run,) = plan(methods=["inherited"])
    assert run.settings["start"] == "teacher"
    assert len(run.settings["teacher"]["sha256"]) == 64
    assert run.settings["mirror_axes"] == [0, 1, 2]
    assert settings_of(run) == run.settings


def test_a_method_that_needs_a_start_is_refused_before_the_first_run(tiny: dict) -> None:
    with pytest.raises(
        SettingsError, match=r"inherited: nnUNetTrainerInherited starts inside its teacher.*start: random"
    ):
        plan(methods=["dcd", "inherited"], settings={"start": "random"})
    with pytest.raises(SettingsError, match="mine: nnUNetTrainerInherited starts inside its teacher"):
        plan(methods=[], variants={"mine": {"method": "inherited", "recipe": "paper"}})
    weights = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    (run,) = plan(methods=["inherited"], pretrained_weights=str(weights), settings={"reduction": 1})
    assert run.settings["start"] == "random"


@pytest.mark.parametrize("place", ["sweeps", "sweeps/3d_fullres/student"])
def test_a_sweep_that_cannot_be_written_is_refused_before_its_table(place: str, tiny: dict) -> None:
    file = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", place)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    described, shown = describe_sweep(None, LEAST), []

    def sweep(dry_run: bool) -> object:
        return run_sweep(described, lambda folder, states: shown.append(folder), Console(), dry_run)

    with pytest.raises(
        MissingRequirement, match=rf"{file} is no folder that can be written to\. Change its permissions"
    ):
        sweep(dry_run=False)
    assert shown == []
    sweep(dry_run=True)
    assert len(shown) == 1


def test_a_lock_that_cannot_be_taken_is_told(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan()[0]
    run.results.mkdir(parents=True)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse)
    with pytest.raises(
        MissingRequirement, match="cannot be written to, so nothing tells whether another process trains"
    ):
        run.state()


def test_a_student_to_start_from_is_pinned(tiny: dict) -> None:
    student = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    (run,) = plan(methods=["inherited"], settings={"start": str(student)})
    assert run.settings["start"] == str(student)
    assert len(run.settings["start_sha256"]) == 64
    save_settings(run)
    assert plan(methods=["inherited"], settings={"start": str(student)}) == [run]
    save_settings(run, start="/moved/since")
    assert plan(methods=["inherited"], settings={"start": str(student)}) == [run], "known by its hash"
    save_settings(run, start_sha256="a" * 64)
    with pytest.raises(SettingsError, match="start_sha256"):
        plan(methods=["inherited"], settings={"start": str(student)})


def test_runs_from_before_students_started_inside_their_teacher_are_no_new_ones(tiny: dict) -> None:
    (run,) = plan(methods=["dcd"])
    assert run.settings["start"] == "teacher"
    old = {key: value for key, value in run.settings.items() if key not in ("start", "start_sha256", "inheritance")}
    run.folder.mkdir(parents=True)
    (run.folder / "distillation_settings.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(SettingsError, match='start: there "random", asked for "teacher"'):
        plan(methods=["dcd"])
    (pinned,) = plan(methods=["dcd"], settings={"start": "random"})
    assert pinned.folder == run.folder


def test_a_run_whose_start_was_not_possible_is_the_one_asked_for(tiny: dict) -> None:
    (run,) = plan(methods=["dcd"])
    save_settings(run, start="random")
    (again,) = plan(methods=["dcd"])
    assert again == run
    with pytest.raises(SettingsError, match="start: there"):
        plan(methods=["dcd"], settings={"start": "teacher"})


def test_pretrained_weights_leave_no_other_start(tiny: dict) -> None:
    weights = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    (run,) = plan(methods=["dcd"], pretrained_weights=str(weights), settings={"reduction": 1})
    assert run.settings["start"] == "random"


def test_probabilities_are_saved_where_that_is_asked_for(tiny: dict) -> None:
    assert "--npz" not in plan()[0].arguments
    assert all("--npz" in run.arguments for run in plan(save_probabilities=True))
