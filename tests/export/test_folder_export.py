"""Exported model folders and archives: what is in them, and that stock nnU-Net predicts the same without this package."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nnunet_kd.distillation.settings_sources import SET_VARIABLE
from nnunet_kd.errors import MissingRequirement, ModelError
from nnunet_kd.export.model_card import shareable_settings
from nnunet_kd.models.checkpoint import ENTRY
from tests.deployment import run_command, segmentation, stock_prediction
from tests.export.exporting import FOLDER_NAME, export, load

REPOSITORY = Path(__file__).resolve().parents[2]


def stock_site_packages(target: Path) -> Path:
    """A virtual environment with everything installed here but this package and its start-up file; its Python."""
    venv.create(target, with_pip=False, symlinks=True)
    site = next(target.glob("lib/python*/site-packages"))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "nnunet_kd" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return target / "bin" / "python"


INSTALL = """
import importlib.util, sys
from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point
if __name__ == '__main__':
    print("nnunet_kd is", "there" if importlib.util.find_spec("nnunet_kd") else "absent")
    archive = sys.argv.pop(1)
    others, sys.argv[1:] = sys.argv[1:], [archive]
    install_from_zip_entry_point()
    sys.argv[1:] = others
"""
"""nnU-Net's installation of an archive, the first argument; those that follow are left to what comes next."""


@pytest.mark.slow
@pytest.mark.nightly
def test_archive_installs_and_predicts_where_this_package_is_not(
    student: Path, cases: tuple[Path, Path], tmp_path: Path
) -> None:
    archive = export(student, tmp_path / "student.zip")
    elsewhere = stock_site_packages(tmp_path / "environment")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "nnUNet_extTrainer", SET_VARIABLE)
    }
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        environment[name] = str(tmp_path / name)
    environment.update(OMP_NUM_THREADS="1", nnUNet_def_n_proc="1")

    def stock(code: str, *arguments: str, python: Path = elsewhere) -> subprocess.CompletedProcess[str]:
        variables = environment if python == elsewhere else {**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)}
        command = [str(python), "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path)

    entry = "from nnunetv2.inference.predict_from_raw_data import {} as main\nif __name__ == '__main__': main()"
    common = (
        "-f", "0", "1", "-device", "cpu", "-npp", "1", "-nps", "1", "-i", str(cases[0]), "--save_probabilities", "-o",
    )  # fmt: skip
    # both in processes of their own: in one that has trained, PyTorch's last bit is another
    here = stock(
        entry.format("predict_entry_point_modelfolder"), "-m", str(student), *common, str(tmp_path / "here"),
        python=Path(sys.executable),
    )  # fmt: skip
    assert here.returncode == 0, here.stderr[-3000:]
    there = stock(
        f"{INSTALL}\n{entry.format('predict_entry_point')}", str(archive), "-d", "998", "-c", "3d_fullres",
        "-tr", "nnUNetTrainerDCD", *common, str(tmp_path / "there"),
    )  # fmt: skip
    assert there.returncode == 0, there.stderr[-3000:]
    assert "nnunet_kd is absent" in there.stdout
    compared = sorted((tmp_path / "here").glob("*.npz"))
    assert len(compared) == 3
    for path in compared:
        before, after = (np.load(folder / path.name)["probabilities"] for folder in (path.parent, tmp_path / "there"))
        assert np.array_equal(before, after)
        assert before.max() > 0.99
        assert np.array_equal(*(segmentation(tmp_path / f / f"{path.stem}.nii.gz") for f in ("here", "there")))


def test_folder_predicts_the_same_and_holds_nothing_of_training(
    student: Path, cases: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = export(student, tmp_path / "any_name", ("0",))
    checkpoint = load(folder / "fold_0" / "checkpoint_final.pth")
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert not {ENTRY, "optimizer_state", "grad_scaler_state"} & set(checkpoint)
    original = load(student / "fold_0" / "checkpoint_final.pth")
    assert ENTRY in original
    assert original["trainer_name"] == "nnUNetTrainerDCD"
    assert all(
        torch.equal(original["network_weights"][key], value) for key, value in checkpoint["network_weights"].items()
    )
    assert not (folder / "fold_1").exists()
    expected = stock_prediction(student, cases[0], tmp_path / "expected")
    found = stock_prediction(folder, cases[0], tmp_path / "found")
    for path in expected.glob("*.npz"):
        assert np.array_equal(np.load(path)["probabilities"], np.load(found / path.name)["probabilities"])


def test_optimizer_is_kept_on_request(student: Path, tmp_path: Path) -> None:
    checkpoint = load(export(student, tmp_path / "kept", keep_optimizer=True) / "fold_1" / "checkpoint_final.pth")
    assert checkpoint["optimizer_state"]["param_groups"]
    assert ENTRY not in checkpoint


def test_card_and_results_travel_without_folders_of_this_machine(student: Path, tmp_path: Path) -> None:
    archive = export(student, tmp_path / "student.zip", licence="CC-BY-4.0")
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
        card = content.read(f"Dataset998_Tiny/{FOLDER_NAME}/README.md").decode()
        summary = json.loads(content.read(f"Dataset998_Tiny/{FOLDER_NAME}/fold_0/validation/summary.json"))
        texts = [content.read(name) for name in names]
    assert all(name.startswith(f"Dataset998_Tiny/{FOLDER_NAME}/") for name in names)
    for part in ("license: CC-BY-4.0", "CC0-1.0", "T1", "core: 2", "1: 0.9000", "0.8500", "reduction: 2.0", "divided by 2",
                 "-tr nnUNetTrainerDCD -p nnUNetPlans -f 0 1"):  # fmt: skip
        assert part in card
    assert summary["metric_per_case"][0]["prediction_file"] == "case0.nii.gz"
    assert not any(str(student.parents[2]).encode() in text for text in texts)


def test_what_was_there_comes_back_if_the_exchange_fails(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = export(student, tmp_path / "model", ("0",))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "model" and Path(target) == output:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", fail)
        with pytest.raises(MissingRequirement, match="No space left on device"):
            export(student, output, ("1",), overwrite=True)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [output]
    export(student, output, ("1",), overwrite=True)
    assert list(tmp_path.iterdir()) == [output]


def test_a_link_to_a_model_is_replaced_and_not_the_model(student: Path, tmp_path: Path) -> None:
    output, link = export(student, tmp_path / "model", ("0",)), tmp_path / "link"
    link.symlink_to(output)
    export(student, link, ("1",), overwrite=True)
    assert not link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]
    assert [path.name for place in (link, output) for path in place.glob("fold_*")] == ["fold_1", "fold_0"]


def test_no_setting_of_the_card_says_where_things_lay(student: Path, tmp_path: Path) -> None:
    """Several teachers, first weights and soft labels; in `shrink`, all of them lie in its output folder."""
    model = shutil.copytree(student, tmp_path / FOLDER_NAME)
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = load(path)
    own = checkpoint[ENTRY]["settings"]
    own["teacher"] = [
        {"path": "/folder/of/this/machine/one", "sha256": "ab"},
        {"path": "/folder/of/this/machine/two.zip"},
    ]
    own["start"] = "/folder/of/this/machine/out/start"
    own["objectives"]["soft"] = {"maps": "/folder/of/this/machine/out/soft_labels/ab_no-mirroring", "alpha": 1.0}
    torch.save(checkpoint, path)
    card = (export(model, tmp_path / "out", ("0",)) / "README.md").read_text()
    assert "/folder/of" not in card
    settings = yaml.safe_load(card.partition("```yaml")[2].partition("```")[0])
    assert [one["path"] for one in settings["teacher"]] == ["one", "two.zip"]
    assert settings["teacher"][0]["sha256"] == "ab"
    assert (settings["start"], settings["objectives"]["soft"]["maps"]) == ("start", "ab_no-mirroring")


def test_settings_without_paths_stay() -> None:
    for settings in ({}, {"start": "teacher", "teacher": {"fold": 1}, "objectives": {}}, {"teacher": [{"path": None}]}):
        assert shareable_settings(settings) == settings
    assert shareable_settings({"teacher": "/folder/of/this/machine/one"}) == {"teacher": "one"}


def test_what_was_there_is_replaced_only_on_request_and_only_by_a_whole_model(student: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    export(student, output, ("0",))
    with pytest.raises(ModelError, match="exists already"):
        export(student, output)
    damaged = tmp_path / "damaged" / FOLDER_NAME
    shutil.copytree(student, damaged)
    checkpoint = damaged / "fold_1" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match=r"cannot be read: its 5000 bytes"):
        export(damaged, output, overwrite=True)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    export(student, output, ("1",), overwrite=True)
    assert sorted(path.name for path in output.glob("fold_*")) == ["fold_1"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "case_1.nii.gz").write_text("mine")
    for _ in range(2):
        with pytest.raises(ModelError, match="other content than a model"):
            export(student, precious, overwrite=True)
        shutil.copy(student / "plans.json", precious)  # as it lies beside predictions
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "model", "precious"]


def test_export_again_from_the_archive(student: Path, tmp_path: Path) -> None:
    archive = export(student, tmp_path / "student.zip")
    again = export(archive, tmp_path / "again", ("1",))
    assert (again / "fold_1" / "checkpoint_final.pth").is_file()
    truncated = tmp_path / "truncated.zip"
    truncated.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not a complete zip archive"):
        export(truncated, tmp_path / "out")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda model: (model / "plans.json").unlink(), "there is no plan"),
        (lambda model: (model / "dataset.json").write_text("{"), "not valid JSON"),
        (lambda model: (model / "dataset.json").unlink(), r"dataset\.json is missing"),
        (lambda model: torch.save({"state_dict": {}}, model / "fold_0" / "checkpoint_final.pth"), "not a checkpoint of nnU-Net"),
        (lambda model: shutil.rmtree(model / "fold_0"), r"has no fold_0/checkpoint_final\.pth"),
    ],
)  # fmt: skip
def test_incomplete_folders_are_named(student: Path, tmp_path: Path, break_it: Any, message: str) -> None:
    model = tmp_path / FOLDER_NAME
    shutil.copytree(student, model)
    break_it(model)
    with pytest.raises(ModelError, match=message):
        export(model, tmp_path / "out", ("0",))
    assert not (tmp_path / "out").exists()


def test_command_line(student: Path, tmp_path: Path) -> None:
    code, output, errors = run_command("export", str(student), str(tmp_path / "a.zip"), "--to", "nnunet", "-f", "0,1")
    assert code == 0, errors
    install = output.partition("Install with: ")[2].splitlines()[0]
    assert shlex.split(install) == ["nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "a.zip")]
    spaced = tmp_path / "to ship"
    _, output, _ = run_command("export", str(student), str(spaced), "--to", "nnunet", "-f", "0")
    predict = shlex.split(output.partition("Predict with: ")[2])
    assert predict[:5] == ["nnUNetv2_predict_from_modelfolder", "-m", str(spaced), "-f", "0"]
    for arguments, expected, message in (
        (["--to", "nnunet", "--fp16"], 3, "belong to --to onnx"),
        (["--to", "onnx", "--int8"], 3, "calibrated on your images"),
        (["--to", "nnunet", "-f", "zero"], 3, "a fold is a number or all"),
        (["--to", "nnunet", "-f", "4"], 8, "has no fold_4/checkpoint_final.pth"),
    ):
        code, _, errors = run_command("export", str(student), str(tmp_path / "b"), *arguments)
        assert (code, message in errors) == (expected, True), errors


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")]
)
def test_a_full_disk_is_named(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MissingRequirement, match=r"out could not be written: .*(No space left|writing file)"):
        export(student, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_model_itself_is_never_replaced(student: Path, tmp_path: Path, overwrite: bool) -> None:
    model = shutil.copytree(student, tmp_path / "results" / student.name)
    archive = export(model, tmp_path / "student.zip")
    (tmp_path / "link").symlink_to(model)

    def content() -> dict[str, int]:
        return {str(path): path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    for output, how in (
        (model, "is"), (tmp_path / "link", "is"), (model / "fold_0", "lies in"), (model / "new", "lies in"),
        (tmp_path / "results", "holds"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=f"{how} the model .*which an export never replaces"):
            export(model, output, overwrite=overwrite)
    with pytest.raises(ModelError, match="is the model"):
        export(archive, archive, overwrite=overwrite)
    assert content() == before
