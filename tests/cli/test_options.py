"""Every option has one long name, old spellings still work, and folds are given as nnU-Net takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import nnunet_kd
from nnunet_kd import cli
from nnunet_kd.cli.options import TABLE, parse_folds, repeated_folds
from nnunet_kd.errors import SettingsError

OLD = json.loads(Path(__file__).with_name("options_of_0.1.0.json").read_text())
"""By command: the spellings of options that version 0.1.0 took."""
COUNTS = {"split": {"--number-of-folds", "--folds"}}
"""Options whose old spelling now means something else in other commands."""


def commands() -> Iterator[tuple[str, Any]]:
    if not cli.app.registered_commands:
        cli._register()

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield " ".join(path), command
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*path, name))

    yield from walk(typer.main.get_command(cli.app), ())


def spellings(command: Any) -> Iterator[tuple[str, ...]]:
    """Of every option, the long name first."""
    for parameter in command.params:
        given = tuple(parameter.opts)
        if parameter.secondary_opts:  # a flag and its opposite
            given = (f"{given[0]}/{parameter.secondary_opts[0]}",)
        if given[0].startswith("-") and given != ("--help",):
            yield given


def test_old_spellings_still_work() -> None:
    known = {name: {text for given in spellings(command) for text in given} for name, command in commands()}
    assert OLD.keys() <= known.keys()
    missing = {name: sorted(set(old) - known[name]) for name, old in OLD.items() if set(old) - known[name]}
    assert not missing


def test_an_option_is_spelled_alike_in_every_command() -> None:
    by_long: dict[str, set[tuple[str, ...]]] = {}
    for name, command in commands():
        for given in spellings(command):
            assert given[0].startswith("--"), f"{name}: {given}"
            if not set(given) <= COUNTS.get(name, set()):
                by_long.setdefault(given[0], set()).add(given)
    for long, found in by_long.items():
        assert len(found) == 1 or long == "--model", found
    assert {given for found in by_long.values() for given in found if len(given) > 1} <= set(TABLE.values())


def test_a_short_name_means_one_option() -> None:
    meanings: dict[str, set[str]] = {}
    for long, *others in TABLE.values():
        for other in others:
            meanings.setdefault(other, set()).add(long)
    assert {short for short, long in meanings.items() if len(long) > 1} == {"-m"}


@pytest.mark.parametrize(
    ("given", "folds"),
    [
        (["-f", "0", "1", "2", "-o", "x"], ["-f", "0", "-f", "1", "-f", "2", "-o", "x"]),
        (["4", "3d_fullres", "-f", "all"], ["4", "3d_fullres", "-f", "all"]),
        (["-f", "0", "model", "1"], ["-f", "0", "model", "1"]),
        (["--folds", "0", "4", "3d_fullres"], ["--folds", "0", "4", "3d_fullres"]),
        (["-f", "0,1", "2"], ["-f", "0,1", "2"]),
        (["-f", "0", "-f", "1", "2"], ["-f", "0", "-f", "1", "-f", "2"]),
    ],
)
def test_several_folds_as_nnunet_takes_them(given: list[str], folds: list[str]) -> None:
    assert repeated_folds(given) == folds


def test_folds_are_numbers_or_all() -> None:
    assert parse_folds(["0,1", "all"]) == ("0", "1", "all")
    with pytest.raises(SettingsError, match="got 'x'"):
        parse_folds(["0", "x"])


@pytest.mark.parametrize("arguments", [("-f", "0", "2"), ("--folds", "0,2"), ("-f", "0", "-f", "2")])
def test_a_command_gets_all_its_folds(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def predict(inputs: Any, output: Any, model: Any, options: Any) -> None:
        given.update(folds=options.folds)
        raise SettingsError("enough")

    monkeypatch.setattr("nnunet_kd.inference.session.predict", predict)
    dict(commands())
    CliRunner().invoke(cli.app, ["predict", "-i", "x", "-o", "y", "-m", "z", *arguments])
    assert given == {"folds": ("0", "2")}


def test_version() -> None:
    dict(commands())
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"nnunet-kd {nnunet_kd.__version__}\n")
    assert "small students" in CliRunner().invoke(cli.app, ["--help"]).stdout


def test_commands_are_there_once() -> None:
    cli._register()
    cli._register()
    names = [name for name, _ in commands()]
    assert len(names) == len(set(names))
