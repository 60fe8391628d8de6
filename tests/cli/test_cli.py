"""The command line as a shell sees it: output, messages, exit codes."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from nnunet_kd.cli import main
from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE
from nnunet_kd.models.plans import read_plans, stage_channels
from nnunet_kd.workflows.bench.pair import (
    DATASET_JSON,
    nnunet_folders,
    write_preprocessed,
    write_untrained_teacher,
)
from tests.conftest import make_plans


def run_in_shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user's shell does it, which imports PyTorch anew; once is enough to know that it works."""
    command = [sys.executable, "-c", "from nnunet_kd.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


def run(*arguments: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """The same in this process; variables given as ``None`` are unset."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["nnunet-kd", *arguments])
        for changed in (SET_VARIABLE, CONFIG_VARIABLE):
            patch.setenv(changed, os.environ.get(changed, ""))  # and so restored afterwards
        for name, value in variables.items():
            patch.setenv(name, value) if value is not None else patch.delenv(name, raising=False)
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), error.getvalue())


def error_of(finished: subprocess.CompletedProcess[str]) -> str:
    """The message alone: one paragraph, no traceback."""
    assert "Traceback" not in finished.stderr
    return finished.stderr[finished.stderr.index("error:") :]


def test_plans_that_somebody_made_are_kept(tiny: dict) -> None:
    folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset998_Tiny"
    assert run("plan", "998").returncode == 0
    path = folder / "nnUNetPlans_r4.json"
    edited = path.read_text().replace('"batch_size": 2', '"batch_size": 3')
    path.write_text(edited)
    refused = run("plan", "998")
    assert (refused.returncode, path.read_text()) == (4, edited)
    assert "--name NAME" in refused.stderr
    assert run("plan", "998", "--name", "nnUNetPlans_mine").returncode == 0
    assert read_plans(folder / "nnUNetPlans_mine.json")["plans_name"] == "nnUNetPlans_mine"
    # a copy that keeps the name within has students of its own
    other = (folder / "nnUNetPlans.json").read_text().replace('"batch_size": 2', '"batch_size": 5')
    (folder / "nnUNetPlans_bs5.json").write_text(other)
    assert run("plan", "998", "-p", "nnUNetPlans_bs5").returncode == 0
    assert read_plans(folder / "nnUNetPlans_bs5_r4.json")["plans_name"] == "nnUNetPlans_bs5_r4"
    assert path.read_text() == edited
    assert run("plan", "998", "--overwrite").returncode == 0
    assert '"batch_size": 2' in path.read_text()


def test_plan(tiny: dict) -> None:
    finished = run_in_shell("plan", "998", "-r", "4")
    assert finished.returncode == 0, finished.stderr
    assert "nnUNetPlans_r4.json" in finished.stdout
    written = Path(os.environ["nnUNet_preprocessed"], "Dataset998_Tiny", "nnUNetPlans_r4.json")
    assert stage_channels(read_plans(written), "3d_fullres") == (2, 4, 8)
    again = run_in_shell("plan", "998", "-p", "nnUNetPlans_r4", "-r", "2")
    assert again.returncode == 4
    assert "a student's already" in error_of(again)


def test_printed_commands_can_be_pasted(tmp_path: Path) -> None:
    with nnunet_folders(tmp_path / "my data"):
        plans = {**make_plans(), "dataset_name": "Dataset998_My Data", "plans_name": "my plans"}
        folder = write_preprocessed(plans, DATASET_JSON, "3d_fullres")
        told = run("plan", folder.name, "-p", "my plans").stdout.partition("Train with: ")[2]
        assert shlex.split(told)[:2] == ["nnUNetv2_train", "Dataset998_My Data"]
        assert shlex.split(told)[-2:] == ["-p", "my plans_r4"]
        told = error_of(run("train", "998", "3d_fullres", "0", "-p", "my plans", "-device", "cpu"))
        command = ["nnUNetv2_train", "Dataset998_My Data", "3d_fullres", "0", "-p", "my plans"]
        assert shlex.split(told.partition("`")[2].partition("`")[0]) == command
        shutil.rmtree(os.environ["nnUNet_raw"])
        told = run("doctor").stdout.partition("create it with `")[2].partition("`")[0]
        assert shlex.split(told) == ["mkdir", "-p", os.environ["nnUNet_raw"]]
        (folder / "dataset.json").unlink()
        assert "`nnUNetv2_plan_and_preprocess -d 998`" in error_of(run("plan", folder.name))


def test_a_dataset_json_that_does_not_hold_is_told_by_line(tiny: dict) -> None:
    path = Path(os.environ["nnUNet_preprocessed"], "Dataset998_Tiny", "dataset.json")
    path.write_text('{\n"labels": {"background": 0, "liver": 1,},\n"channel_names": {"0": "CT"}\n}')
    for arguments in (["plan", "998"], ["train", "998", "3d_fullres", "0", "-device", "cpu"]):
        finished = run(*arguments)
        assert finished.returncode == 7
        assert f"{path}, line 2, column " in error_of(finished)
        assert "Correct the file, and the one in nnUNet_raw" in error_of(finished)
    assert f"{path}, line 2" in run("doctor", "998").stdout
    path.write_text('{"file_ending": ".nii.gz"}')
    assert "has no channel_names or modality and no labels" in error_of(run("plan", "998"))
    path.write_bytes('{"name": "ü"}'.encode("latin-1"))
    assert "is not UTF-8 at byte 10" in error_of(run("plan", "998"))


def test_pretrained_weights_of_another_network_are_refused_before_training(tiny: dict, tmp_path: Path) -> None:
    teacher = Path(os.environ["nnUNet_results"], "Dataset998_Tiny", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    given = str(teacher / "fold_0" / "checkpoint_final.pth")
    command = ("train", "998", "3d_fullres", "0", "-m", "student", "-device", "cpu", "-pretrained_weights")
    finished = run(*command, given)
    assert finished.returncode == 3
    told = error_of(finished)
    assert "channels of the stages: 8, 16, 32 there, 2, 4, 8 in the student" in told
    assert "8x1x3x3x3 there, 2x1x3x3x3 in the student" in told
    assert "tensor" not in told
    assert len(told) < 1200
    assert run(*command, given, "--c").returncode == 3


def test_a_name_that_is_no_text_is_told(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii.gz")

    def read(*arguments: object) -> None:
        name.encode()

    monkeypatch.setattr("nnunet_kd.models.student_plan.read_plans", read)
    finished = run("plan", "998")
    assert finished.returncode == 7
    assert r"caf\xe9.nii.gz has a name that is not utf-8" in error_of(finished)


def test_doctor(tiny: dict) -> None:
    fine = run("doctor", "998")
    assert fine.returncode == 0, fine.stdout + fine.stderr
    for part in ("nnUNetTrainerDCD: found by nnU-Net", "student:", "teacher:", "SHA-256", "Everything is in place"):
        assert part in fine.stdout
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        missing = run("doctor", **{variable: None})
        assert missing.returncode == 6
        assert f"missing  {variable}: the environment variable {variable} is not set" in missing.stdout
    assert run("doctor", "998", "-f", "3").returncode == 6


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("start: techer", "student: start: the model techer does not exist"),
        ("mirror_axes: [3]", "mirror_axes"),
        ("mirror_axes: [2]\nreduction: 2", None),
    ],
)
def test_doctor_refuses_settings_that_train_refuses(tiny: dict, written: str, told: str | None) -> None:
    Path(os.environ["nnUNet_preprocessed"], "Dataset998_Tiny", "nnunet_kd.yaml").write_text(written)
    finished = run("doctor", "998")
    assert (finished.returncode == 0) is (told is None), finished.stdout
    assert told is None or told in finished.stdout


def test_a_students_plan_holds_whatever_reduction_a_file_says(tiny: dict) -> None:
    folder = Path(os.environ["nnUNet_preprocessed"], "Dataset998_Tiny")
    assert run("plan", "998").returncode == 0
    assert run("doctor", "998", "-p", "nnUNetPlans_r4").returncode == 0
    (folder / "nnunet_kd.yaml").write_text("reduction: 2")
    assert run("doctor", "998", "-p", "nnUNetPlans_r4").returncode == 0


def test_doctor_tells_a_file_where_a_folder_belongs(folders: Path) -> None:
    (folders / "file").touch()
    finished = run("doctor", nnUNet_raw=str(folders / "file"))
    assert (finished.returncode, "file is a file. Set nnUNet_raw to a folder." in finished.stdout) == (6, True)


def test_doctor_names_packages_that_are_not_installed(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("ptwt", "nnunet-kd"):
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr("nnunet_kd.cli.doctor.version", version)
    monkeypatch.setattr("nnunet_kd.cli.doctor.trainer_names", list)
    monkeypatch.setitem(sys.modules, "torch", None)
    finished = run("doctor")
    assert finished.returncode == 6
    for part in (
        "ptwt: not installed; run `pip install ptwt`",
        "`pip install -e .` in its clone",
        "device: import of torch",
    ):
        assert part in finished.stdout
    assert "3 checks failed: nnunet-kd, ptwt, device" in error_of(finished)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-m", "dcx"], 3, "there is no method 'dcx'; there are cwd, dcd, fgbvd"),
        (["--recipe", "papr"], 3, "did you mean 'paper'"),
        (["--set", "objectives.dcd.wieght=1"], 3, "did you mean 'weight'"),
        (["--set", "reduction=9"], 4, "less than one of 8 channels"),
        (["-p", "nnUNetOtherPlans"], 4, "Plans found beside it: nnUNetPlans"),
        (["-device", "tpu"], 3, "cuda, cpu or mps"),
        (["--set", "teacher=/a", "-t", "/b"], 3, "both -t /b and --set teacher say which teacher is meant"),
        (["--set", "teacher.path=/a", "-t", "/b"], 3, "both -t /b and --set teacher"),
        (["--set", "teacher.trusted=true", "-t", "/a", "-t", "/b"], 3, "both -t /a and --set teacher"),
    ],
)
def test_train_refuses_before_anything_is_written(tiny: dict, arguments: list[str], code: int, message: str) -> None:
    before = sorted(Path(os.environ["nnUNet_results"]).rglob("*"))
    finished = run("train", "998", "3d_fullres", "0", "-device", "cpu", *arguments)
    assert finished.returncode == code, finished.stderr
    assert message in error_of(finished)
    assert sorted(Path(os.environ["nnUNet_results"]).rglob("*")) == before


def test_weighing_a_student_without_a_teacher_is_refused(tiny: dict) -> None:
    for options in (("-m", "student"), ("-m", "dcd", "--set", "objectives.dcd.weight=0")):
        finished = run("weigh", "998", "3d_fullres", "0", "-device", "cpu", *options)
        assert finished.returncode == 3
        assert "nothing to weigh" in error_of(finished)


def test_unknown_datasets_and_configurations(tiny: dict) -> None:
    unknown = run("plan", "123")
    assert unknown.returncode == 7
    assert "Dataset123_*" in error_of(unknown)
    other = run("train", "998", "2d", "0", "-device", "cpu")
    assert other.returncode == 4
    assert "no configuration '2d'; it has 3d_fullres" in error_of(other)


def test_doctor_names_a_teacher_that_does_not_fit(folders: Path) -> None:
    two = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}
    teacher = write_untrained_teacher(make_plans(), "3d_fullres", DATASET_JSON)
    teacher.joinpath("dataset.json").write_text(json.dumps(two))
    finished = run("doctor", "998", "-t", str(teacher))
    assert finished.returncode == 6
    assert "input channels: teacher 2, student 1" in finished.stdout
