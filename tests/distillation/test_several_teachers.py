"""Several teachers: mean probability, turns, and what is said about leaks."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet_kd.distillation.frozen_teacher import FrozenTeacher, Teachers
from nnunet_kd.distillation.objectives.base import StepOutputs
from nnunet_kd.distillation.settings_sources import DATASET_FILE, SET_VARIABLE, SETTINGS_FILE
from nnunet_kd.distillation.turns import Turns
from nnunet_kd.errors import SettingsError, TeacherError
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans
from tests.distillation.objectives.steps import TinyNetwork
from tests.training.tiny_trainer import ready, steps, trainer


def members(count: int) -> list[FrozenTeacher]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(FrozenTeacher(TinyNetwork(), (4, 6), torch.device("cpu")))
    return made


@pytest.mark.parametrize("regions", [False, True])
def test_logits_are_of_the_mean_probability(regions: bool) -> None:
    each = members(3)
    image = torch.randn(2, 1, 6, 6, 6)
    features, logits = Teachers(each, "first", regions).outputs(image, 0, features=True, logits=True)
    own = torch.stack([member.outputs(image)[1] for member in each])
    squash = torch.sigmoid if regions else (lambda z: z.softmax(-4))
    torch.testing.assert_close(squash(logits), squash(own).mean(0), rtol=1e-4, atol=1e-6)
    assert torch.equal(features[0], each[0].features(image)[0])


@pytest.mark.parametrize("regions", [False, True])
def test_teachers_that_agree_give_back_their_own_logits(regions: bool) -> None:
    (one,) = members(1)
    image = torch.randn(1, 1, 6, 6, 6)
    _, logits = Teachers([one, one], "first", regions).outputs(image, 0, features=False, logits=True)
    torch.testing.assert_close(logits, one.outputs(image)[1], rtol=1e-4, atol=1e-5)


def test_features_are_the_firsts_or_in_turn() -> None:
    each = members(3)
    image = torch.randn(1, 1, 6, 6, 6)
    for kind, expected in (("first", [0, 0, 0]), ("in_turn", [0, 1, 2])):
        teachers = Teachers(each, kind, False)
        for turn, place in enumerate(expected):
            for logits in (False, True):
                features, _ = teachers.outputs(image, turn, features=True, logits=logits)
                assert torch.equal(features[1], each[place].features(image)[1])
    each[1].channels = (4, 8)
    Teachers(each, "first", False)
    with pytest.raises(TeacherError, match="take turns must have the same channels"):
        Teachers(each, "in_turn", False)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_one_reader_takes_them_one_after_the_other(every: int) -> None:
    turns = Turns(5, [every])
    assert [turns.place(every * run) for run in range(12)] == [run % 5 for run in range(12)]


@pytest.mark.parametrize("teachers", [2, 3, 4, 5])
@pytest.mark.parametrize("periods", [(1, 5), (2, 3), (2, 10), (4, 6, 10), (1, 2, 3, 4, 5)])
def test_every_reader_meets_every_teacher_equally_often(teachers: int, periods: tuple[int, ...]) -> None:
    turns, iterations = Turns(teachers, periods), teachers * math.lcm(*periods)
    for period in periods:
        met = [turns.place(iteration) for iteration in range(0, iterations, period)]
        assert {met.count(place) for place in range(teachers)} == {len(met) // teachers}


@pytest.fixture
def two_folds(folders: Path) -> dict:
    plans = make_plans()
    model = write_untrained_teacher(plans, "3d_fullres", DATASET_JSON)
    second = write_untrained_teacher(plans, "3d_fullres", DATASET_JSON, seed=1)
    assert model == second
    (model / "fold_1").mkdir()
    shutil.copy(model / "fold_0" / "checkpoint_final.pth", model / "fold_1")
    write_untrained_teacher(plans, "3d_fullres", DATASET_JSON, seed=0)
    return plans


def test_folds_are_several_teachers_and_the_leak_is_named(two_folds: dict) -> None:
    out = io.StringIO()
    made = trainer("nnUNetTrainerLogits", two_folds, "teacher.folds=[0, 1]")
    with contextlib.redirect_stdout(out):
        made.prepare_distillation()
        made.on_train_epoch_start()
    assert "teacher is of fold 1, the student of fold 0" in out.getvalue()
    assert out.getvalue().count("WARNING") == 1
    steps(made, 1)
    pinned = made.settings.as_dict()["teacher"]
    assert [one["fold"] for one in pinned] == [0, 1]
    assert len({one["sha256"] for one in pinned}) == 2
    assert [one.fold for one in made.settings.teachers()] == [0, 1]


def test_a_continued_run_keeps_its_teachers(two_folds: dict, folders: Path) -> None:
    dataset_file = folders / "nnUNet_preprocessed" / "Dataset998_Tiny" / DATASET_FILE
    dataset_file.write_text("teacher: {folds: [0, 1]}\n")
    made = ready("nnUNetTrainerLogits", two_folds)
    path = Path(made.output_folder) / SETTINGS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made.settings.as_dict()))
    resumed = trainer("nnUNetTrainerLogits", two_folds, continue_training=True)
    assert resumed.settings.teacher == made.settings.teacher
    dataset_file.write_text("teacher: {fold: 1}\n")
    with pytest.raises(SettingsError, match=r"other settings than the files give now \(teacher:"):
        trainer("nnUNetTrainerLogits", two_folds, continue_training=True)
    os.environ[SET_VARIABLE] = "[]"


def test_a_list_of_paths(two_folds: dict, folders: Path) -> None:
    model = next((folders / "nnUNet_results").glob("*/nnUNetTrainer__*"))
    made = ready(
        "nnUNetTrainerFitNet",
        two_folds,
        f"teacher={json.dumps([str(model / 'fold_1'), str(model)])}",
        "feature_teacher=in_turn",
    )
    steps(made, 2)
    assert [one.fold for one in made.settings.teachers()] == [1, 0]


@pytest.mark.parametrize(
    ("assignments", "wanted"),
    [
        (["objectives.dcd.every=2"], {"dcd": [0, 1, 0]}),
        (["objectives.dcd.every=2", "objectives.fitnet.weight=1"], {"dcd": [0, 1, 0], "fitnet": [0, 1, 1, 0, 0, 1]}),
        (["objectives.fopro.weight=1", "objectives.fopro.explore_every=2"], {"fopro": [0, 1, 1, 0, 0, 1]}),
    ],
)
def test_turns_count_what_runs(two_folds: dict, assignments: list[str], wanted: dict[str, list[int]]) -> None:
    """Every second of two teachers' iterations would always be the first one's."""
    made = ready("nnUNetTrainerKD", two_folds, "teacher.folds=[0, 1]", "feature_teacher=in_turn", *assignments)
    assert made.supervision is not None
    members = made.supervision.teachers.members
    read: dict[str, list[int]] = {}
    explored: list[int] = []
    for name, objective in made.supervision.distillation.all_objectives().items():
        objective.register_forward_pre_hook(
            lambda _, given, name=name: read.setdefault(name, []).append(members.index(given[0].teacher))
        )
        explore = objective.explore

        def watched(step: StepOutputs, explore: Callable[..., dict] = explore) -> dict:
            found = explore(step)
            explored.extend([members.index(step.teacher)] if found else [])
            return found

        objective.explore = watched
    made.num_iterations_per_epoch = 6
    steps(made, 6)
    assert read == wanted
    if "fopro" in wanted:
        assert explored == [0, 1, 0]
