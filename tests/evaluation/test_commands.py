"""The three commands, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nnunet_kd.cli.compare import compare
from nnunet_kd.cli.evaluate import evaluate
from nnunet_kd.cli.profile import profile
from nnunet_kd.errors import DataError, MissingRequirement, NnunetKdWarning, SettingsError
from nnunet_kd.evaluation.costs.profiling import DeviceProfile, Latency, Profile
from nnunet_kd.evaluation.costs.tables import read_profiles, write_profiles
from tests.evaluation.helpers import labels, write_dataset, write_image, write_model

app = typer.Typer(pretty_exceptions_enable=False)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("profile")(profile)


def run(*arguments):
    """Output of a command; its error, if it has one, is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    raw = write_dataset(tmp_path, methods={"student": 0.9, "ours": 0.4})
    splits = [{"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    return raw


def test_evaluate_writes_csv_and_json(dataset, tmp_path):
    output = run("evaluate", tmp_path / "ours", dataset / "labelsTr", "-np", 1)
    assert "4 cases" in output
    content = json.loads((tmp_path / "ours" / "evaluation.json").read_text())
    assert set(content["cases"]) == {f"case_{index}" for index in range(4)}
    assert len((tmp_path / "ours" / "evaluation.csv").read_text().splitlines()) == 9


def test_evaluate_a_fold(dataset, tmp_path):
    for index in (0, 1):
        (tmp_path / "ours" / f"case_{index}.nii.gz").unlink()
    arguments = ("evaluate", tmp_path / "ours", dataset / "labelsTr", "-np", 1, "-o", tmp_path / "fold")
    with pytest.raises(DataError, match=r"lacks case_0\.nii\.gz, case_1\.nii\.gz.*--splits"):
        run(*arguments)
    with pytest.raises(SettingsError, match="--splits and -f belong together"):
        run(*arguments, "--fold", 0)
    run(*arguments, "--splits", tmp_path / "splits_final.json", "--fold", 0)
    assert len((tmp_path / "fold.csv").read_text().splitlines()) == 5


def test_evaluate_tells_the_output_folder_before_it_measures(dataset, tmp_path):
    with pytest.raises(SettingsError, match="Make it first"):
        run("evaluate", tmp_path / "ours", dataset / "labelsTr", "-o", tmp_path / "no" / "where")
    (tmp_path / "results").mkdir()  # files beside it get its name, and an ending
    run("evaluate", tmp_path / "ours", dataset / "labelsTr", "-np", 1, "-o", tmp_path / "results")
    assert (tmp_path / "results.csv").is_file()


def test_a_file_in_place_of_a_folder_is_told(dataset, tmp_path):
    file = tmp_path / "ours" / "case_0.nii.gz"
    with pytest.raises(DataError, match=f"the prediction folder {file} is a file. Give a folder"):
        run("evaluate", file, file)
    with pytest.raises(DataError, match=f"ours: the folder {file} is a file. Give a folder"):
        run("compare", f"ours={file}", f"student={tmp_path / 'student'}", "--reference", "student")


def test_evaluate_counts_empty_masks(dataset, tmp_path):
    write_image(tmp_path / "ours" / "case_0.nii.gz", labels(0) * 0)
    output = run("evaluate", tmp_path / "ours", dataset / "labelsTr", "-np", 1)
    assert "core: only prediction empty in 1 case" in output


def test_compare_shows_how_far_probabilities_can_be_trusted(dataset, tmp_path):
    methods = [f"student={tmp_path / 'student'}", f"ours={tmp_path / 'ours'}"]
    out = tmp_path / "out"
    arguments = ("compare", *methods, "--reference", "student", "--ground-truth", dataset / "labelsTr", "-np", 1)
    run(*arguments, "-o", out)
    assert "Calibration" not in (out / "tables.md").read_text()
    for index in range(4):
        truth = labels(index)
        certain = np.stack([truth == label for label in range(3)]).astype(np.float32)
        np.savez_compressed(tmp_path / "ours" / f"case_{index}.npz", probabilities=0.8 * certain + 0.1)
    output = run(*arguments, "-o", out)
    assert "Calibration" in output
    tables = (out / "tables.md").read_text()
    # 0.9 where it is true, 0.1 where it is not: an error of 0.1 everywhere
    assert "| ours | overall | 1.00 ± 0.00 | 10.00 ± 0.00 | 100.00 ± 0.00 |" in tables
    assert "No probabilities were saved of student" in tables
    assert "Calibration" in (out / "report.html").read_text()


def test_compare_plain_folders(dataset, tmp_path):
    methods = [f"student={tmp_path / 'student'}", f"ours={tmp_path / 'ours'}"]
    out = tmp_path / "out"
    arguments = ("compare", *methods, "--reference", "student", "-np", 1, "-o", out)
    with pytest.raises(DataError, match="--ground-truth"):
        run(*arguments)
    with pytest.raises(SettingsError, match="--reference 'typo' is not among the methods"):
        run("compare", *methods, "--reference", "typo")
    with pytest.raises(SettingsError, match="same name"):
        run("compare", methods[0], methods[0], "--reference", "student")
    arguments = (*arguments, "--ground-truth", dataset / "labelsTr")
    with pytest.raises(DataError, match=r"imagesTr lacks case_0_0003\.nii\.gz, case_1_0003"):
        run(*arguments, "--images", dataset / "imagesTr", "--channel", 3)
    with pytest.raises(SettingsError, match="cannot be reference and teacher"):
        run(*arguments, "--teacher", "student")
    with pytest.raises(SettingsError, match="at least two methods"):
        run("compare", methods[0], "--reference", "student")
    with pytest.raises(MissingRequirement, match=r"--output .*no folder that can be written to"):
        run(*arguments, "-o", tmp_path / "splits_final.json")
    assert not out.exists()
    with pytest.raises(SettingsError, match="name=FOLDER"):
        run("compare", tmp_path / "student", tmp_path / "ours", "--reference", "student")
    run(*arguments, "--images", dataset / "imagesTr")
    assert {path.name for path in out.iterdir()} == {
        "report.html", "tables.md", "tables.tex", "comparison.csv", "cases.csv"
    }  # fmt: skip
    assert len((out / "cases.csv").read_text().splitlines()) == 1 + 2 * 4 * 2
    assert "| ours |" in (out / "tables.md").read_text()
    assert "The images were not found" not in (out / "report.html").read_text()
    (out / "cases_by_seed.csv").write_text("of an earlier comparison")
    with pytest.warns(NnunetKdWarning, match=r"held values of other trainings\. They are in cases_by_seed_1\.csv now"):
        assert "over 1 patient;" in " ".join(run(*arguments, "--group-regex", "^(case)").split())
    assert "<dt>Patients</dt><dd>1, over whom" in (out / "report.html").read_text()
    assert "The images were not found" in (out / "report.html").read_text()
    assert (out / "cases_by_seed_1.csv").read_text() == "of an earlier comparison"
    assert not (out / "cases_by_seed.csv").exists()
    with pytest.raises(SettingsError, match="is not a regular expression"):
        run(*arguments, "--group-regex", "(")
    write_profiles([Profile("big", "x", 1, (1, 1, 1), None, None, 1, None, None, None)], tmp_path / "p.json")
    with pytest.raises(
        SettingsError, match=r"p\.json has big, and the methods are student, ours\. Give the same names"
    ):
        run(*arguments, "--profile", tmp_path / "p.json")


def test_compare_model_folders_finds_its_files(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    (tmp_path / "preprocessed" / dataset.name).mkdir(parents=True)
    (tmp_path / "splits_final.json").rename(tmp_path / "preprocessed" / dataset.name / "splits_final.json")
    settings = "teacher: {path: t, sha256: abcdef, fold: all}\n"
    arguments = []
    for name, given in (("student", None), ("ours", settings)):
        model = write_model(tmp_path / f"{name}__nnUNetPlans__3d_fullres", settings=given)
        (model / "fold_0" / "validation").mkdir()
        for index in (2, 3):
            source = tmp_path / name / f"case_{index}.nii.gz"
            source.rename(model / "fold_0" / "validation" / source.name)
        arguments.append(f"{name}={model}")
    profile_file = tmp_path / "p.json"
    device = DeviceProfile("a processor", None, {"patch": Latency(0.5, 0.4, 0.6, 5)})
    profiles = [
        Profile(name, "s", 10**6, (8, 8, 8), None, None, 8, 10**9, None, None, {"cpu": device})
        for name in ("student", "ours")
    ]
    write_profiles(profiles, profile_file)
    out = tmp_path / "out"
    output = run("compare", *arguments, "--reference", "student", "-np", 1, "-o", out, "--profile", profile_file)
    assert "the teacher of ours (fold all) had seen 2 of the 2 cases" in output
    page = (out / "report.html").read_text()
    assert "<dt>Cases</dt><dd>2</dd>" in page
    assert "<dt>Fold</dt><dd>0</dd>" in page
    assert "abcdef" in page
    assert "Latency was not measured" not in page
    # a fold beyond the splits is one that nnU-Net made at random: what it predicted counts
    splits = tmp_path / "preprocessed" / dataset.name / "splits_final.json"
    beyond = [argument.replace("__nn", "_5__nn") for argument in arguments]
    for old, new in zip(arguments, beyond, strict=True):
        shutil.copytree(old.split("=")[1], new.split("=")[1])
        (Path(new.split("=")[1]) / "fold_0").rename(Path(new.split("=")[1]) / "fold_5")
    assert len(json.loads(splits.read_text())) <= 5
    told = run("compare", *beyond, "--reference", "student", "-np", 1, "-o", tmp_path / "out5")
    assert "whether student had seen the cases cannot be told: there is no fold '5'" in " ".join(told.split())
    assert "<dt>Cases</dt><dd>2</dd>" in (tmp_path / "out5" / "report.html").read_text()
    shutil.copytree(tmp_path / "student_5__nnUNetPlans__3d_fullres" / "fold_5" / "validation", tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="there is no fold '5'"):
        run("compare", f"a={tmp_path / 'elsewhere'}", beyond[0], "--reference", "a", "-f", 5, "-o", tmp_path / "out")


def test_profile_writes_what_compare_reads(tmp_path):
    model = write_model(tmp_path / "student__nnUNetPlans__3d_fullres")
    file = tmp_path / "p.json"
    arguments = ("--repeats", 1, "--warmup", 0, "--patch-only", "--device", "cpu", "-o", file)
    assert "Model complexity" in run("profile", f"student={model}", *arguments)
    assert read_profiles(file)["student"].devices["cpu"].latency["patch"].repeats == 1
    assert {path.suffix for path in tmp_path.glob("p.*")} == {".json", ".md", ".csv", ".tex"}


def test_profile_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(SettingsError, match="two models are called 'a'"):
        run("profile", f"a={tmp_path}", f"a={tmp_path}")
    with pytest.raises(SettingsError, match="-device must be cpu or cuda, got 'tpu'"):
        run("profile", f"a={tmp_path}", "--device", "tpu")
    with pytest.raises(SettingsError, match="must be two or three numbers"):
        run("profile", f"a={tmp_path}", "--volume", "12x0x3")
    with pytest.raises(SettingsError, match=r"must be a \*\.json file"):
        run("profile", f"a={tmp_path}", "-o", tmp_path / "x.txt")


def test_profile_tells_a_folder_that_cannot_be_written_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # as root, nothing is closed
    with pytest.raises(MissingRequirement, match="cannot be written to"):
        run("profile", f"a={tmp_path}", "-o", tmp_path / "x.json")
