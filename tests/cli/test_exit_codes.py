"""The same error has the same exit code in every command, and the page that lists the codes is right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nnunet_kd import cli, errors
from nnunet_kd.errors import INTERRUPTED, NnunetKdError
from tests.cli.test_options import commands

ROOT = Path(__file__).resolve().parents[2]
TRAINING = "998 3d_fullres 0"
SETTINGS, MISSING, MODEL = 3, 6, 8

WITH_DEVICE = {
    "train": f"train {TRAINING} -m dcd",
    "inherit": f"inherit {TRAINING}",
    "soften": f"soften {TRAINING}",
    "weigh": f"weigh {TRAINING} -m dcd",
    "sweep": "sweep 998 3d_fullres --methods dcd",
    "predict": "predict -i images -o out --model model",
    "profile": "profile model",
    "shrink": "shrink model images out",
    "bench loss": "bench loss",
    "bench step": "bench step",
    "bench size": "bench size",
    "demo": "demo",
}
"""By command: a command line to which a device is added."""
WITH_FOLD = {
    "train": "train 998 3d_fullres zero -m dcd -device cpu",
    "inherit": "inherit 998 3d_fullres zero -device cpu",
    "soften": f"soften {TRAINING} -device cpu -f zero",
    "weigh": "weigh 998 3d_fullres zero -m dcd -device cpu",
    "sweep": "sweep 998 3d_fullres --methods dcd -device cpu -f zero",
    "export": "export model out.zip --to nnunet -f zero",
    "predict": "predict -i images -o out --model model -f zero",
    "conform": "conform model images -f zero",
    "evaluate": "evaluate pred gt --splits splits.json -f zero",
    "compare": "compare a=pred b=gt --reference a -f zero",
    "profile": "profile model -f zero",
    "doctor": "doctor 998 -f zero",
}
"""By command: a command line with a fold that is none."""
OPTIONS = [
    "evaluate pred gt -f 0",
    "compare a=pred --sweep folder --reference a",
    "compare nothing --reference a",
    "compare a=pred b=gt --reference typo",
    "profile a=one a=two",
    "profile model --volume 1x2x3x4",
    "profile model -o nowhere/profile.json",
    "export model out.zip --to nnunet --fp16",
    "predict -i images -o out --model model --backend openvino",
    "split 998 --group-regex .+ --holdout 2",
    "convert brats2024 download --dataset-id 1000",
    "split 998 --group-regex (",
    f"soften {TRAINING} -device cpu -num_parts 2 -part_id 2",
    f"train {TRAINING} -m dcd -device cpu -num_gpus 2",
    f"train {TRAINING} -m nothing -device cpu",
    "bench size --shape cube",
    "recipes show nothing",
    "sweep 998 3d_fullres --methods dcd --seeds one",
]
"""Options that cannot be, or do not go together."""
WITHOUT_FOLDERS = [
    "plan 998", f"train {TRAINING} -m dcd -device cpu", f"inherit {TRAINING} -device cpu", f"soften {TRAINING} -device cpu",
    f"weigh {TRAINING} -m dcd -device cpu", "sweep 998 3d_fullres --methods dcd -device cpu", "split 998 --group-regex .+",
    "convert brats2024 download", "doctor",
]  # fmt: skip
NO_OUTPUT = ["compare a=pred b=gt --reference a -o file/below", "combine kept.csv --reference a -o file/below"]
NO_MODEL = [
    "export model out.zip --to nnunet", "predict -i images -o out --model model", "conform model images", "profile model",
    "predict -i images -o out --model model.onnx", "profile model.onnx", "profile model.xyz",
]  # fmt: skip


def code_of(line: str) -> tuple[int, str]:
    cli._register()
    result = CliRunner().invoke(cli.app, line.split())
    if isinstance(result.exception, NnunetKdError):
        return result.exception.exit_code, str(result.exception)
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command lines name, in the working directory; no CUDA device and none of nnU-Net's folders."""
    for name in ("pred", "gt", "images", "download/BraTS-GLI-00000-100"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "splits.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def parameters() -> Iterator[tuple[str, set[str]]]:
    for name, command in commands():
        yield name, {spelling for parameter in command.params for spelling in (*parameter.opts, parameter.name)}


def test_the_lists_hold_every_command() -> None:
    assert {name for name, given in parameters() if "--device" in given} == set(WITH_DEVICE)
    assert {name for name, given in parameters() if {"--folds", "fold"} & given} - {"split"} == set(WITH_FOLD)


@pytest.mark.parametrize("line", WITH_DEVICE.values(), ids=WITH_DEVICE)
def test_devices(line: str) -> None:
    for device, words in (("tpu", "-device must be|device: Input should be"), ("cuda", "no CUDA device here")):
        code, told = code_of(f"{line} -device {device}")
        assert (code, bool(re.search(words, told))) == (SETTINGS, True), told


@pytest.mark.parametrize("line", [*WITH_FOLD.values(), *OPTIONS])
def test_options(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable / "Dataset998_Tiny" / "imagesTr").mkdir(parents=True)
        (tmp_path / variable / "Dataset998_Tiny" / "imagesTr" / "a_0000.nii.gz").touch()
        (tmp_path / variable / "Dataset998_Tiny" / "dataset.json").write_text(
            '{"channel_names": {"0": "T1"}, "labels": {"background": 0}, "file_ending": ".nii.gz", "numTraining": 1}'
        )
        monkeypatch.setenv(variable, str(tmp_path / variable))
    code, told = code_of(line)
    assert code == SETTINGS, told
    assert (line in WITH_FOLD.values()) == ("a fold is a number or all, got 'zero'." in told)


@pytest.mark.parametrize("line", WITHOUT_FOLDERS)
def test_variables(line: str) -> None:
    code, told = code_of(line)
    assert (code, "not set" in told or "nnUNet_raw" in told) == (MISSING, True), told


@pytest.mark.parametrize("line", NO_OUTPUT)
def test_places_that_cannot_be_written(line: str) -> None:
    assert code_of(line)[0] == MISSING


@pytest.mark.parametrize("line", NO_MODEL)
def test_models_that_are_not_there(line: str) -> None:
    code, told = code_of(line)
    assert code == MODEL, told


def test_the_page_lists_the_codes() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    classes: list[Any] = [
        one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, NnunetKdError)
    ]
    classes.remove(NnunetKdError)  # nothing raises it
    codes = [one.exit_code for one in classes]
    assert len(set(codes)) == len(codes)
    assert listed == {0, 2, INTERRUPTED, 137, *codes}


def test_every_error_has_a_kind() -> None:
    """The base class has the code of a command line that cannot be parsed."""
    raised = re.compile(r"raise NnunetKdError\(")
    assert [path for path in (ROOT / "nnunet_kd").rglob("*.py") if raised.search(path.read_text())] == []


def test_the_runtime_has_the_same_codes() -> None:
    theirs = pytest.importorskip("nnunet_kd_runtime.errors", reason="needs ./runtime")
    found = {
        name: one.exit_code for name, one in vars(theirs).items() if isinstance(one, type) and hasattr(one, "exit_code")
    }
    assert found.pop("SegmentationError") == NnunetKdError.exit_code
    assert found
    assert {name: getattr(errors, name).exit_code for name in found} == found
