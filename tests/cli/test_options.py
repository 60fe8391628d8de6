"""Every option has one long name, old spellings still work, and folds are given as nnU-Net takes them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import nnunet_kd
from nnunet_kd import cli
from nnunet_kd.cli import doctor
from nnunet_kd.cli.options import TABLE, parse_folds, repeated_folds
from nnunet_kd.errors import SettingsError
from nnunet_kd.nnunet.folds import parse_fold
from nnunet_kd_runtime.command import parser

OLD = json.loads(Path(__file__).with_name("options_of_0.1.0.json").read_text())
"""By command: the spellings of options that version 0.1.0 took."""
HIDDEN = {("split", "--folds")}
"""Old spellings that now mean something else in other commands: they still work where they did, and no page shows them."""


def commands() -> Iterator[tuple[str, Any]]:
    if not cli.app.registered_commands:
        cli._register()

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield " ".join(path), command
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*path, name))

    yield from walk(typer.main.get_command(cli.app), ())


def spellings(command: Any, hidden: bool = False) -> Iterator[tuple[str, ...]]:
    """Of every option, the long name first, a flag's opposites last; or of those that no help shows."""
    for parameter in command.params:
        given = (*parameter.opts, *parameter.secondary_opts)
        if given[0].startswith("-") and given != ("--help",) and parameter.hidden is hidden:
            yield given


def spelled(entry: tuple[str, ...]) -> tuple[str, ...]:
    """An entry of the table as :func:`spellings` has it."""
    sides = [text.strip().partition("/") for text in entry]
    return (*(own for own, _, _ in sides if own), *(opposite for _, _, opposite in sides if opposite))


def test_old_spellings_still_work() -> None:
    known = {
        name: {text for hidden in (False, True) for given in spellings(command, hidden) for text in given}
        for name, command in commands()
    }
    assert OLD.keys() <= known.keys()
    missing = {name: sorted(set(old) - known[name]) for name, old in OLD.items() if set(old) - known[name]}
    assert not missing
    assert {(name, *given) for name, command in commands() for given in spellings(command, hidden=True)} == HIDDEN


def test_an_option_is_spelled_alike_in_every_command_as_the_table_has_it() -> None:
    table = {name: spelled(entry) for name, entry in TABLE.items()}
    assert all(given[0] == f"--{name}" for name, given in table.items())
    used: dict[str, set[str]] = {}
    for name, command in commands():
        for given in spellings(command):
            long = given[0].removeprefix("--")
            used.setdefault(long, set()).add(name)
            assert given == table.get(long, (f"--{long}",)), f"{name}: {given}"
    assert {long for long, names in used.items() if len(names) > 1} <= table.keys()
    assert table.keys() <= used.keys(), "an option that no command has"


def test_no_other_spelling_is_a_long_name_elsewhere() -> None:
    longs = {given[0] for _, command in commands() for given in spellings(command)}
    others = {other for entry in TABLE.values() for other in spelled(entry)[1:]}
    assert not longs & others


def test_a_short_name_means_one_option() -> None:
    meanings: dict[str, set[str]] = {}
    for long, *others in map(spelled, TABLE.values()):
        for other in others:
            meanings.setdefault(other, set()).add(long)
    assert {short for short, long in meanings.items() if len(long) > 1} == {"-m"}


def test_kd_segment_has_the_spellings_of_predict() -> None:
    own = [{*action.option_strings} for action in parser()._actions]
    predict = [{*given} - {"--mirroring"} for given in spellings(dict(commands())["predict"])]
    shared = [(mine, given) for mine in own for given in predict if mine & given]
    assert {"--step-size", "--device", "--no-mirroring"} <= {text for _, given in shared for text in given}
    assert not [(mine, given) for mine, given in shared if not given <= mine]


@pytest.mark.parametrize(
    "given",
    [
        (
            "-device",
            "cuda",
            "-step_size",
            "0.25",
            "--disable_tta",
            "--save-probabilities",
            "-prev_stage_predictions",
            "x",
        ),
        ("--device", "cuda", "--step", "0.25", "--no-mirroring", "--save_probabilities", "--previous-stage", "x"),
        ("--device", "cuda", "--step-size", "0.25", "--no-mirroring", "--npz", "--previous-stage", "x"),
    ],
)
def test_kd_segment_takes_old_and_new_spellings(given: tuple[str, ...]) -> None:
    read = parser().parse_args(["student.onnx", "images", "-o", "out", *given])
    assert (read.device, read.step, read.no_mirroring, read.save_probabilities) == ("cuda", 0.25, True, True)
    assert read.previous_stage == Path("x")


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
    assert parse_folds(["0,1", "all", "02,"]) == ("0", "1", "all", "2")
    assert (parse_fold("3"), parse_fold("all")) == (3, "all")
    for wrong in ("x", "-1", "", "²", "1.5"):
        with pytest.raises(SettingsError, match=f"a fold is a number or all, got '{wrong}'"):
            parse_folds(["0", wrong])


@pytest.mark.parametrize(
    ("given", "mirrored"),
    [((), None), (("--mirroring",), True), (("--no-mirroring",), False), (("--disable_tta",), False)],
)
def test_mirroring_in_every_command_that_has_it(given: tuple[str, ...], mirrored: bool | None) -> None:
    least = {
        "predict": ("-i", "x", "-o", "y", "-m", "z"),
        "conform": ("model", "images"),
        "soften": ("998", "3d_fullres", "0"),
        "shrink": ("model", "images", "out"),
    }
    found = dict(commands())
    defaults = {"predict": True, "conform": True, "soften": False, "shrink": None}
    assert {name for name, one in found.items() if "--mirroring" in sum(spellings(one), ())} == set(least)
    for name, others in least.items():
        wanted = mirrored if given else defaults[name]
        assert found[name].make_context(name, [*others, *given]).params["mirroring"] is wanted, name


@pytest.mark.parametrize("spelling", ["-i", "--input", "--images"])
def test_images_of_soften(spelling: str) -> None:
    given = ["998", "3d_fullres", "0", spelling, "more"]
    assert dict(commands())["soften"].make_context("soften", given).params["images"] == Path("more")


def test_split_takes_its_old_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def grouped(groups: Any, folds: int, seed: int) -> Any:
        asked.append(folds)
        raise SettingsError("enough")

    monkeypatch.setattr("nnunet_kd.datasets.splits.training_cases", lambda dataset: (dataset, []))
    monkeypatch.setattr("nnunet_kd.datasets.splits.grouped_folds", grouped)
    dict(commands())
    for given in ((), ("--number-of-folds", "3"), ("--folds", "4")):
        CliRunner().invoke(cli.app, ["split", "998", "--group-regex", "x", *given])
    assert asked == [5, 3, 4]


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


HEAVY = ("torch", "nnunetv2", "sklearn", "scipy")
"""What takes seconds to import, and what commands do without until they run."""


LACKING = """
import ast, sys
names = ast.literal_eval(sys.argv.pop(1))

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lacking())
"""


def without(heavy: tuple[str, ...], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that lacks some packages."""
    return subprocess.run(
        [sys.executable, "-c", LACKING + code, repr(heavy), *arguments], capture_output=True, text=True
    )


def test_commands_load_pytorch_and_nnunet_when_they_run() -> None:
    names = sorted(path.stem for path in Path(cli.__file__).parent.glob("*.py") if path.stem != "__init__")
    imports = ", ".join(f"nnunet_kd.cli.{name}" for name in names)
    assert len(names) > 15
    finished = without((), f"import {imports}; print([name for name in {HEAVY} if name in sys.modules])")
    assert (finished.stdout, finished.stderr) == ("[]\n", "")


def test_doctor_says_what_is_missing_even_if_nearly_everything_is() -> None:
    start = "from nnunet_kd.cli import main; main()"
    finished = without(HEAVY, start, "doctor")
    assert finished.returncode == 6, finished.stderr
    assert "missing  device: No module named 'torch'" in finished.stdout
    assert "missing  nnUNetTrainerDCD: No module named 'nnunetv2" in finished.stdout
    assert "Traceback" not in finished.stderr
    other = without(HEAVY, start, "plan", "998")
    assert other.returncode == 6, other.stderr
    assert "`nnunet-kd doctor` says which packages are missing" in " ".join(other.stderr.split())
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize("error", [ModuleNotFoundError("part", name="torch.part"), ImportError("part", name="torch")])
def test_an_import_that_fails_within_a_package_keeps_its_traceback(
    error: ImportError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which main replaces
    monkeypatch.setattr(cli, "_register", lambda: None)
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ImportError, match="part"):
        cli.main()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("gone", name="torch"), True),
        (ImportError("libcudart.so.12: cannot open shared object file", name="torch._C"), True),
        (ModuleNotFoundError("gone", name="torch.part"), False),
        (ImportError("gone", name="nnunet_kd.system"), False),
    ],
)
def test_doctor_tells_faults_of_the_installation_alone(
    error: ImportError, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise error

    cli._register()
    monkeypatch.setattr(doctor, "_device", fail)
    monkeypatch.setattr(doctor, "trainer_names", list)
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert (f"missing  device: {error}" in result.output) is told
    assert (result.exception is error) is not told


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
