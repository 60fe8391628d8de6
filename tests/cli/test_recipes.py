"""``nnunet-kd recipes`` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_kd.distillation.recipes import recipe_header, recipe_names
from nnunet_kd.distillation.settings_sources import read_settings_file
from nnunet_kd.system.shipped import shipped_folder
from tests.cli.test_cli import error_of, run


def test_list_names_every_recipe_and_says_what_it_is() -> None:
    finished = run("recipes", "list")
    assert finished.returncode == 0
    for path in (shipped_folder("plans") / "recipes").glob("*.yaml"):
        assert f" {path.stem} " in finished.stdout
    assert "Detail Consistent Distillation as its paper describes it" in finished.stdout


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_what_it_is_and_how_to_train_with_it(name: str) -> None:
    about, command = recipe_header(name)
    assert about
    assert command.startswith(("nnUNetv2_train ", "nnunet-kd train "))


def test_show_prints_the_file() -> None:
    finished = run("recipes", "show", "paper")
    assert finished.returncode == 0
    assert finished.stdout == (shipped_folder("plans") / "recipes" / "paper.yaml").read_text()


def test_a_copy_is_read_as_the_recipe_and_never_replaced_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("recipes", "copy", "paper").returncode == 0
    copy = tmp_path / "paper.yaml"
    assert read_settings_file(copy) == read_settings_file("paper")

    copy.write_text("epochs: 3\n")
    refused = run("recipes", "copy", "paper")
    assert refused.returncode == 3
    assert "paper.yaml exists already" in error_of(refused)
    assert copy.read_text() == "epochs: 3\n"

    assert run("recipes", "copy", "paper", "--overwrite").returncode == 0
    assert read_settings_file(copy) == read_settings_file("paper")


def test_copy_takes_a_file_or_a_folder(tmp_path: Path) -> None:
    finished = run("recipes", "copy", "dcd", str(tmp_path / "mine.yaml"))
    assert f"--recipe {tmp_path / 'mine.yaml'}" in finished.stdout
    run("recipes", "copy", "dcd", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dcd.yaml", "mine.yaml"]
    lost = run("recipes", "copy", "dcd", str(tmp_path / "missing" / "dcd.yaml"))
    assert lost.returncode == 6
    assert "could not be written" in error_of(lost)


def test_an_unknown_recipe_names_the_nearest() -> None:
    finished = run("recipes", "show", "papr")
    assert finished.returncode == 3
    assert "did you mean 'paper'?" in error_of(finished)
