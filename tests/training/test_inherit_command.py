"""``nnunet-kd inherit``: what it shows, writes and refuses."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.errors import MissingRequirement, NnunetKdWarning
from tests.training.test_start import INHERITED, made, same, weights
from tests.training.tiny_training import CASES, NAME, SHORT

cli._register()

OPTIONS = ["--device", "cpu", *(part for assignment in SHORT for part in ("--set", assignment))]


def test_the_command_tells_of_leaks_and_of_the_teachers_own_dice(results: Path, tmp_path: Path) -> None:
    model = results / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (model / "fold_0" / "validation").mkdir()
    cases = [{"reference_file": f"/elsewhere/{case}.nii.gz"} for case in CASES[4:]]
    summary = {"mean": {"1": {"Dice": 0.875}, "2": {"Dice": 0.625}}, "metric_per_case": cases}
    path_of_summary = model / "fold_0" / "validation" / "summary.json"
    path_of_summary.write_text(json.dumps(summary))
    archive = Path(shutil.make_archive(str(tmp_path / "teacher"), "zip", results, model.name))
    with zipfile.ZipFile(archive, "a") as opened:  # as nnU-Net's own, which holds all configurations
        for file in [file for file in model.rglob("*") if file.is_file()]:
            opened.write(file, Path(model.name.replace("3d_fullres", "2d")) / file.relative_to(model))
    shutil.copytree(model / "fold_0", model / "fold_1")

    def shown(*options: str, fold: str = "0") -> tuple[str, Any]:
        arguments = ["inherit", NAME, "3d_fullres", fold, *OPTIONS, *options]
        result = CliRunner().invoke(cli.app, arguments)
        return " ".join(result.output.split()), result.exception

    for path in (model, archive):
        output, _ = shown("-t", str(path))
        assert "87.50" in output
        assert "62.50" in output
    lines = (
        CliRunner()
        .invoke(cli.app, ["inherit", NAME, "3d_fullres", "0", *OPTIONS, "--no-validation"])
        .output.splitlines()
    )
    rows = {cells[0].strip(): cells[-1].strip() for line in lines if len(cells := line.strip("│ ").split("│")) == 5}
    assert rows["decoder.seg_layers.0"] == "not trained"
    assert rows["decoder.seg_layers.1"].endswith("%")
    path_of_summary.write_text(json.dumps({**summary, "metric_per_case": cases[1:]}))
    output, _ = shown("-t", str(model))
    assert "87.50" not in output
    assert "The teacher has no validation/summary.json of these cases" in output
    with pytest.warns(NnunetKdWarning, match="this teacher is of fold 1, the student of fold 0"):
        shown("--no-validation", "-t", str(model / "fold_1"))
    _, error = shown("--no-validation", "--set", f"start={model}")
    assert "this command computes the start from the teacher" in str(error)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").touch()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nnunet_kd.workflows.inherit.in_temporary_results", None)  # told before anything is computed
        _, error = shown("-o", str(taken), "--overwrite")
        assert "other content than a model" in str(error)
        _, error = shown("-o", str(taken / "notes.txt" / "below" / "student"))
    assert f"{taken / 'notes.txt'} is no folder that can be written to" in str(error)
    assert isinstance(error, MissingRequirement)


@pytest.mark.slow
def test_the_command_shows_and_writes_it(results: Path, tmp_path: Path) -> None:
    output = tmp_path / "untrained.zip"
    arguments = ["inherit", NAME, "3d_fullres", "0", *OPTIONS]
    result = CliRunner().invoke(cli.app, [*arguments, "-o", str(output)], catch_exceptions=False)
    shown = " ".join(result.output.split())
    assert result.exit_code == 0
    assert "encoder.stages.0.0.convs.0" in shown
    assert "Validation Dice before training" in shown
    assert "The teacher has no validation/summary.json" in shown
    assert not list(results.glob("*Inherited*")), "nothing is left among the results"
    computed = made(INHERITED)
    from_disk = made(INHERITED, f"start={output}")
    assert same(weights(computed), weights(from_disk))
    with zipfile.ZipFile(output) as opened:
        (card,) = [opened.read(name).decode() for name in opened.namelist() if name.endswith(".md")]
    assert "| 0 | nnUNetTrainerInherited | 0 |" in card
    assert "before any training" in card
    again = CliRunner().invoke(cli.app, [*arguments, "-o", str(output)])
    assert "exists already" in str(again.exception)
