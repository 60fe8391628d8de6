"""Order, validation and messages of settings; every shipped recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nnunet_kd.distillation.recipes import recipe_names
from nnunet_kd.distillation.settings import Settings, validate_settings
from nnunet_kd.distillation.settings_model import Schedule, yaml_text
from nnunet_kd.distillation.settings_sources import (
    CONFIG_VARIABLE,
    SET_VARIABLE,
    merge,
    parse_assignments,
    read_settings_file,
    resolve_settings,
)
from nnunet_kd.errors import SettingsError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "0.1.0"


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    validate_settings(read_settings_file(name), name)


def test_the_paper_recipe_is_the_paper() -> None:
    settings = resolve_settings("paper", ("dcd",), environment={})
    dcd = settings.active_objectives()["dcd"].model_dump()
    assert (settings.reduction, settings.epochs, settings.learning_rate) == (4, None, None)
    assert {key: dcd[key] for key in ("weight", "wavelet", "levels", "bands", "idwt", "stages")} == {
        "weight": 0.05, "wavelet": "db4", "levels": 3, "bands": "D", "idwt": True, "stages": "sum",
    }  # fmt: skip


def test_the_recipe_for_short_trainings_is_the_papers_but_for_the_weight() -> None:
    short, paper = (resolve_settings(name, ("dcd",), environment={}).as_dict() for name in ("short", "paper"))
    assert (short["objectives"]["dcd"].pop("weight"), paper["objectives"]["dcd"].pop("weight")) == (5, 0.05)
    assert short == paper


def test_later_places_win_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "nnunet_kd.yaml").write_text("epochs: 10\nseed: 1\nobjectives: {dcd: {weight: 0.5, levels: 2}}")
    config = tmp_path / "mine.yaml"
    config.write_text("epochs: 20\nobjectives: {dcd: {weight: 0.25}}")
    environment = {CONFIG_VARIABLE: str(config), SET_VARIABLE: json.dumps(["epochs=30"])}
    settings = resolve_settings("paper", ("dcd",), tmp_path, environment=environment)
    dcd = settings.active_objectives()["dcd"]
    assert (settings.epochs, settings.seed, dcd.weight, dcd.levels) == (30, 1, 0.25, 2)  # type: ignore[attr-defined]


def test_files_may_hold_settings_of_other_trainers_objectives(tmp_path: Path) -> None:
    (tmp_path / "nnunet_kd.yaml").write_text("epochs: 10\nobjectives: {dcd: {weight: 0.5}}")
    settings = resolve_settings("student", (), tmp_path, environment={})
    assert (settings.epochs, settings.active_objectives()) == (10, {})
    with pytest.raises(SettingsError, match="no objective"):
        resolve_settings("student", (), environment={SET_VARIABLE: '["objectives.dcd.weight=1"]'})


def test_all_problems_come_in_one_message_with_the_nearest_key() -> None:
    wrong = {
        "epoch": 3,
        "reduction": 0.5,
        "objectives": {"dcd": {"wieght": 1, "wavelet": "db99"}},
        "teacher": {"pth": "x"},
    }
    with pytest.raises(SettingsError) as caught:
        validate_settings(wrong, "mine.yaml")
    message = str(caught.value)
    for part in (
        "mine.yaml", "'epoch' (did you mean 'epochs'?)", "reduction", "'objectives.dcd.wieght' (did you mean 'weight'?)",
        "db99", "'teacher.pth' (did you mean 'path'?)",
    ):  # fmt: skip
        assert part in message


def test_per_level_needs_bands_of_every_level() -> None:
    with pytest.raises(SettingsError, match="per_level needs bands"):
        validate_settings({"objectives": {"dcd": {"per_level": True, "bands": "A"}}}, "x")


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        SettingsError, match=r"'papr' is neither a file nor a shipped recipe \(did you mean 'paper'\?\)"
    ):
        read_settings_file("papr")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_files_that_are_no_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"x\.yaml"):
        read_settings_file(tmp_path / "x.yaml")


def test_assignments() -> None:
    parsed = parse_assignments(["objectives.dcd.weight=1e-3", "teacher.fold=all", "epochs=3", "seed=null"])
    assert parsed == {"objectives": {"dcd": {"weight": 0.001}}, "teacher": {"fold": "all"}, "epochs": 3, "seed": None}
    with pytest.raises(SettingsError, match="key=value"):
        parse_assignments(["epochs"])
    with pytest.raises(SettingsError, match="another --set"):
        parse_assignments(["epochs=3", "epochs.first=1"])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            [
                "objectives.dcd.weight=1",
                "objectives.dcd={levels: 2, schedule: {length: 3}}",
                "objectives.dcd.schedule.end=9",
            ],
            {"objectives": {"dcd": {"weight": 1, "levels": 2, "schedule": {"length": 3, "end": 9}}}},
        ),
        (
            ["objectives={dcd: {levels: 2}}", "objectives.soft.alpha=1"],
            {"objectives": {"dcd": {"levels": 2}, "soft": {"alpha": 1}}},
        ),
        (["teacher=/t", "teacher.fold=1"], {"teacher": {"path": "/t", "fold": 1}}),
    ],
)
def test_assignments_add_up_in_any_order(given: list[str], expected: dict[str, Any], order: int) -> None:
    assert parse_assignments(given[::order]) == expected


@pytest.mark.parametrize("path", ["/a b", "/ä", "/\U0001f600", "/\U00020000", "/\x7f", "/\x85", "/\\ud83d\\ude00"])
def test_every_path_survives_the_way_through_an_assignment(path: str) -> None:
    given = {SET_VARIABLE: json.dumps([f"teacher={yaml_text([path, path])}", f"start={yaml_text(path)}"])}
    settings = resolve_settings("dcd", ("dcd",), environment=given)
    assert (settings.start, [one.path for one in settings.teachers()]) == (path, [path, path])


def test_of_two_assignments_to_one_key_the_later_holds() -> None:
    assert parse_assignments(["objectives.dcd={weight: 1, levels: 2}", "objectives.dcd.weight=3"]) == {
        "objectives": {"dcd": {"weight": 3, "levels": 2}}
    }
    assert parse_assignments(["objectives.dcd.weight=3", "objectives.dcd={weight: 1}"]) == {
        "objectives": {"dcd": {"weight": 1}}
    }
    assert parse_assignments(["objectives.dcd.weight=3", "objectives.dcd=null"]) == {"objectives": {"dcd": None}}


def test_a_teacher_may_be_just_a_path() -> None:
    for value in ("/models/a", {"path": "/models/a"}, ["/models/a"]):
        settings = validate_settings({"teacher": value}, "x")
        assert [one.path for one in settings.teachers()] == ["/models/a"]
        assert settings.as_dict()["teacher"]["path"] == "/models/a"


@pytest.mark.parametrize("other", ["/b", {"path": "/b"}])
def test_trust_in_a_teacher_is_not_for_another(other: Any) -> None:
    trusted = {"teacher": {"path": "/a", "fold": 1, "trusted": True}}
    assert merge(trusted, {"teacher": other}) == {"teacher": {"path": "/b", "fold": 1}}
    assert merge(trusted, {"teacher": {"path": "/b", "trusted": True}})["teacher"]["trusted"]
    assert merge(trusted, {"teacher": "/a"}) == trusted
    assert merge(trusted, {"teacher": {"fold": 0}})["teacher"] == {"path": "/a", "fold": 0, "trusted": True}
    assert merge({"teacher": {"trusted": True}}, {"teacher": other})["teacher"] == {"path": "/b", "trusted": True}


def test_several_teachers_are_a_list_or_folds() -> None:
    settings = validate_settings({"teacher": ["/a", {"path": "/b", "folds": [1, "all"]}]}, "x")
    assert [(one.path, one.fold) for one in settings.teachers()] == [("/a", None), ("/b", 1), ("/b", "all")]
    assert Settings.model_validate(settings.as_dict()) == settings
    for wrong, said in (([], "at least 1"), ({"fold": 0, "folds": [1]}, "excludes"), ([{"pth": 1}], "'path'")):
        with pytest.raises(SettingsError, match=said):
            validate_settings({"teacher": wrong}, "x")


@pytest.mark.parametrize("said", ["teacher.trusted=true", "teacher.fold=0"])
def test_what_is_said_of_one_of_several_teachers_is_refused(said: str, tmp_path: Path) -> None:
    (tmp_path / "nnunet_kd.yaml").write_text("teacher: [/a, /b]")
    with pytest.raises(SettingsError, match=rf"{said.split('=')[0]}: there are 2 teachers, .* which one is meant"):
        resolve_settings("dcd", ("dcd",), tmp_path, environment={SET_VARIABLE: f'["{said}"]'})
    (tmp_path / "one.yaml").write_text("teacher: [/a]")
    of_one = {CONFIG_VARIABLE: str(tmp_path / "one.yaml"), SET_VARIABLE: f'["{said}"]'}
    one = resolve_settings("dcd", ("dcd",), environment=of_one)
    assert one.teachers()[0].path == "/a"
    given = {SET_VARIABLE: f'["teacher.path=/c", "{said}"]'}
    assert [one.path for one in resolve_settings("dcd", ("dcd",), tmp_path, environment=given).teachers()] == ["/c"]


@pytest.mark.parametrize("named", ["m", "m/fold_0", "m/fold_0/checkpoint_final.pth"])
def test_a_file_may_name_the_teacher_of_the_continued_run_in_other_words(named: str, tmp_path: Path) -> None:
    saved = {"teacher": {"path": str(tmp_path.resolve() / "m"), "fold": 0, "sha256": "0" * 64}}
    (tmp_path / "nnunet_kd.yaml").write_text(f"teacher: {tmp_path / named}")
    settings = resolve_settings("dcd", ("dcd",), tmp_path, saved=saved, environment={})
    assert settings.as_dict()["teacher"]["path"] == saved["teacher"]["path"]
    # of several, a file that speaks of one is another wish than what was begun, unless all are named again
    several = {
        "teacher": [{"path": "/a", "fold": 0, "sha256": "0" * 64}, {"path": "/b", "fold": 1, "sha256": "1" * 64}]
    }
    (tmp_path / "nnunet_kd.yaml").write_text("teacher: {fold: 0}")
    with pytest.raises(SettingsError, match="other settings than the files give now"):
        resolve_settings("dcd", ("dcd",), tmp_path, saved=several, environment={})
    again = {SET_VARIABLE: '["teacher=[/a, /b]"]'}
    named = resolve_settings("dcd", ("dcd",), tmp_path, saved=several, environment=again)
    assert [one.path for one in named.teachers()] == ["/a", "/b"]
    with pytest.raises(SettingsError, match=r"teacher\.trusted: there are 2 teachers"):
        resolve_settings("dcd", ("dcd",), saved=several, environment={SET_VARIABLE: '["teacher.trusted=true"]'})
    for other in ("n", "m/fold_1", "m/fold_0/checkpoint_best.pth"):
        (tmp_path / "nnunet_kd.yaml").write_text(f"teacher: {tmp_path / other}")
        with pytest.raises(SettingsError, match=r"teacher\.path: was .*/m, now"):
            resolve_settings("dcd", ("dcd",), tmp_path, saved=saved, environment={})


def test_resolved_settings_survive_the_way_through_yaml() -> None:
    settings = resolve_settings("paper", ("dcd",), environment={SET_VARIABLE: '["ema=0.999", "teacher=/t"]'})
    assert Settings.model_validate(yaml.safe_load(yaml.safe_dump(settings.as_dict()))) == settings


def test_continuing_keeps_the_saved_settings_and_refuses_silent_changes(tmp_path: Path) -> None:
    saved = resolve_settings("paper", ("dcd",), environment={SET_VARIABLE: '["epochs=7"]'}).as_dict()
    assert resolve_settings("paper", ("dcd",), saved=saved, environment={}).epochs == 7
    (tmp_path / "nnunet_kd.yaml").write_text("epochs: 9")
    with pytest.raises(SettingsError, match="epochs: was 7, now 9"):
        resolve_settings("paper", ("dcd",), tmp_path, saved=saved, environment={})
    on_purpose = resolve_settings("paper", ("dcd",), tmp_path, saved=saved, environment={SET_VARIABLE: '["epochs=9"]'})
    assert on_purpose.epochs == 9


def test_a_students_plan_has_the_last_word_on_its_reduction(tmp_path: Path) -> None:
    def reduction(saved: dict | None = None, said: str = "[]") -> float:
        environment = {SET_VARIABLE: said}
        return resolve_settings("student", (), tmp_path, saved=saved, environment=environment, planned=2).reduction

    assert reduction() == 2
    # an older version saved its default, which was not what it trained
    assert reduction(saved={"reduction": 4}) == 2
    assert reduction(saved={"reduction": 4}, said='["reduction=2"]') == 2
    # recipes and files are meant for other plans, too
    (tmp_path / "nnunet_kd.yaml").write_text("reduction: 4")
    assert reduction() == 2
    assert reduction(saved={"reduction": 2}) == 2
    recipe = {CONFIG_VARIABLE: "short"}
    assert resolve_settings("student", (), tmp_path, environment=recipe, planned=2).reduction == 2
    with pytest.raises(SettingsError, match=r"--set reduction=4: the plan is a student's of reduction 2"):
        reduction(said='["reduction=4"]')


def test_settings_of_a_run_of_before_mean_a_random_start(tmp_path: Path) -> None:
    (before,) = FIXTURES.glob("**/sweeps/**/nnUNetTrainerDCD__*/fold_0/distillation_settings.yaml")
    assert resolve_settings("dcd", ("dcd",), environment={}).start == "teacher"
    old = resolve_settings("dcd", ("dcd",), environment={CONFIG_VARIABLE: str(before)})
    objectives = read_settings_file(before)["objectives"]
    assert old.start == "random"
    assert old.objectives.dcd is not None
    assert (old.objectives.dcd.projection_start, old.objectives.dcd.weight) == ("random", objectives["dcd"]["weight"])
    other = tmp_path / "mine.yaml"
    other.write_text("reduction: 2")
    assert resolve_settings("dcd", ("dcd",), environment={CONFIG_VARIABLE: str(other)}).start == "teacher"


def test_files_do_not_say_where_the_student_without_a_teacher_starts(tmp_path: Path) -> None:
    (tmp_path / "nnunet_kd.yaml").write_text(f"start: /a\nstart_sha256: {'a' * 64}\nepochs: 3")

    def start(**environment: str) -> tuple[str, str | None]:
        told = {CONFIG_VARIABLE: "dcd", **environment}
        settings = resolve_settings("student", (), tmp_path, environment=told, starts_at_random=True)
        assert settings.epochs == 3
        return settings.start, settings.start_sha256

    assert start() == ("random", None)
    assert start(**{SET_VARIABLE: '["start=/b"]'}) == ("/b", None)


def test_a_file_may_name_soft_labels_shorter_than_the_run_that_is_continued(tmp_path: Path) -> None:
    known = {"objectives": {"soft": {"maps": "/a/teacher_fold_0_mirrored_12ab", "maps_sha256": "0" * 64}}}
    saved = validate_settings(known, "x").as_dict()

    def continued(maps: str) -> Settings:
        (tmp_path / "nnunet_kd.yaml").write_text(f"objectives: {{soft: {{maps: {maps}}}}}")
        return resolve_settings("soft", ("soft",), tmp_path, saved=saved, environment={})

    for maps in ("teacher_fold_0_mirrored", "/b/teacher_fold_0_mirrored_12ab"):
        assert continued(maps).as_dict() == saved
    with pytest.raises(
        SettingsError, match=r"objectives\.soft\.maps: was /a/teacher_fold_0_mirrored_12ab, now teacher_fold_1"
    ):
        continued("teacher_fold_1_mirrored")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1, 1, 1, 1, 1, 1]),
        (Schedule(start=2), [0, 0, 1, 1, 1, 1]),
        (Schedule(kind="linear", start=1, length=4), [0, 0, 0.25, 0.5, 0.75, 1]),
        (Schedule(kind="cosine", start=1, length=2), [0, 0, 0.5, 1, 1, 1]),
        (Schedule(end=2), [1, 1, 0, 0, 0, 0]),
        (Schedule(start=1, end=4), [0, 1, 1, 1, 0, 0]),
        (Schedule(kind="linear", end=5, fall=4), [1, 1, 0.75, 0.5, 0.25, 0]),
        (Schedule(kind="cosine", length=2, end=4, fall=2), [0, 0.5, 1, 0.5, 0, 0]),
        (Schedule(kind="linear", end=3), [1, 1, 1, 0, 0, 0]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.factor(epoch) for epoch in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{start: 150, length: 800}", "`length` needs a kind that rises"),
        ("{kind: cosine, fall: 2}", "`fall` needs `end`"),
        ("{end: 4, fall: 2}", "a kind that falls"),
        ("{start: 4, end: 4}", r"`end` \(4\) must be after `start` \(4\)"),
        ("{kind: linear, start: 1, length: 3, end: 5, fall: 2}", "rises until epoch 4 and falls from 3 on"),
    ],
)
def test_schedules_that_contradict_themselves(schedule: str, message: str) -> None:
    setting = f'["objectives.dcd.schedule={schedule}"]'
    with pytest.raises(SettingsError, match=message):
        resolve_settings("paper", ("dcd",), environment={SET_VARIABLE: setting})
