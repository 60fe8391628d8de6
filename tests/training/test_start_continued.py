"""``--c`` goes on with the start that a training had, whatever asked for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, DATASET_FILE, SETTINGS_FILE, resolve_settings
from nnunet_kd.errors import SettingsError
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.training.trainer import DistillationTrainer
from tests.training.test_start import (
    DCD,
    INHERITED,
    log_of,
    made,
    same,
    weights,
)
from tests.training.tiny_training import SHORT, train, write_teacher_with_batch_norm
from tests.workflows.sweep.test_runs import plan

DIGEST = "a" * 64
RANDOM_RUN, INSIDE = {"start": "random"}, {"start": "teacher"}


def loading(checkpoint: Path) -> Callable[[DistillationTrainer], None]:
    """As ``-pretrained_weights`` does it."""

    def load(trainer: DistillationTrainer) -> None:
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(checkpoint))

    return load


def saved_start(trainer: DistillationTrainer) -> Any:
    return yaml.safe_load((Path(trainer.output_folder) / SETTINGS_FILE).read_text())["start"]


@pytest.mark.parametrize("in_a_sweep", [False, True])
def test_pretrained_weights_and_a_trainer_that_needs_a_start(student: Path, in_a_sweep: bool) -> None:
    options = list(SHORT)
    if in_a_sweep:
        (run,) = plan(methods=["inherited"], pretrained_weights=str(student))
        pairs = zip(run.arguments, run.arguments[1:], strict=False)
        options += [after for option, after in pairs if option == "--set"]
        assert 'start="random"' in options
    trained = train(INHERITED, [*options, "epochs=1"], before=loading(student))
    again = train(INHERITED, [*options, "epochs=1"], continued=True)
    assert (again.current_epoch, saved_start(again)) == (1, "random"), "of a finished training"
    assert same(weights(again), weights(trained))
    assert train(INHERITED, [*options, "epochs=2"], continued=True).current_epoch == 2


def test_pretrained_weights_are_to_be_given_again_where_there_is_no_checkpoint(student: Path) -> None:
    made(INHERITED, before=loading(student))
    with pytest.raises(SettingsError, match="Give them again and leave --c out"):
        made(INHERITED, continued=True)
    with pytest.raises(SettingsError, match=r"starts from random weights\.$"):
        made(INHERITED, "start=random")


def test_pretrained_weights_instead_of_the_start_in_a_file(dataset: Path, student: Path) -> None:
    (dataset / DATASET_FILE).write_text("start: teacher\n")
    train(DCD, [*SHORT, "epochs=1"], before=loading(student))
    again = made(DCD, "epochs=2", continued=True)
    assert (again.current_epoch, saved_start(again)) == (1, "random")


def test_a_recipe_that_prefers_a_start_which_is_not_possible(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_teacher_with_batch_norm()
    monkeypatch.setenv(CONFIG_VARIABLE, "dcd")
    trained = train(DCD, [*SHORT, "epochs=1"])
    assert "training starts at random" in log_of(trained)
    again = made(DCD, "epochs=2", continued=True)
    assert (again.current_epoch, saved_start(again)) == (1, "random")


def test_a_student_by_another_path(dataset: Path, student: Path, tmp_path: Path) -> None:
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.symlink_to(student.parent.parent)
    (dataset / DATASET_FILE).write_text(f"start: {link}\n")
    train(INHERITED, [*SHORT, "epochs=1"])
    again = made(INHERITED, "epochs=2", continued=True)
    assert saved_start(again) == str(student.parent.parent.resolve())
    (dataset / DATASET_FILE).unlink()
    student.parent.parent.rename(copy)
    moved = made(INHERITED, "epochs=2", f"start={copy}", continued=True)
    assert moved.settings.start_sha256 == again.settings.start_sha256
    for other in ("random", "teacher", str(dataset.parents[1] / "nnUNet_results" / "nowhere")):
        with pytest.raises(SettingsError, match=r"--set start=|start: the model .*does not exist"):
            made(INHERITED, "epochs=2", f"start={other}", continued=True)


def test_another_start_on_the_command_line_is_refused(results: Path) -> None:
    trained = train(DCD, [*SHORT, "epochs=1", "start=random"])
    with pytest.raises(SettingsError, match=r"--set start=teacher: the training to continue began with start: random"):
        made(DCD, "epochs=2", "start=teacher", continued=True)
    entry = read_checkpoint(Path(trained.output_folder) / "checkpoint_final.pth")["nnunet_kd"]
    assert entry["settings"]["start"] == "random"


@pytest.mark.parametrize(
    ("saved", "file", "refused"),
    [
        (RANDOM_RUN, "start: teacher", None),
        (RANDOM_RUN, "start: somewhere", None),
        ({}, "start: teacher", None),  # of a version that knew no other start
        (INSIDE, "start: teacher", None),
        (INSIDE, "epochs: null", None),
        (INSIDE, "start: random", "start: was teacher, now random"),
        (INSIDE, "start: somewhere", "start: was teacher, now somewhere"),
        ("student", "start: link", None),
        ("student", "start: student", None),
        ("student", f"{{start: link, start_sha256: {DIGEST}}}", None),
        ("student", f"{{start: link, start_sha256: {'b' * 64}}}", "start_sha256: was a"),
        ("student", "start: teacher", "now teacher"),
        ("student", "start: random", "now random"),
        ("student", "start: other", "now other"),
    ],
)
def test_a_file_that_means_the_same_may_say_it_otherwise(
    saved: Any, file: str, refused: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").mkdir()
    (tmp_path / "link").symlink_to("student")
    (tmp_path / DATASET_FILE).write_text(file)
    if saved == "student":
        saved = {"start": str((tmp_path / "student").resolve()), "start_sha256": DIGEST}
    if refused is None:
        settings = resolve_settings("dcd", ("dcd",), tmp_path, saved=saved, environment={})
        assert (settings.start, settings.start_sha256) == (saved.get("start", "random"), saved.get("start_sha256"))
    else:
        with pytest.raises(SettingsError, match=refused):
            resolve_settings("dcd", ("dcd",), tmp_path, saved=saved, environment={})
