"""``nnunet-kd convert`` and ``nnunet-kd split`` as users call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from nnunet_kd.cli import convert, split
from nnunet_kd.errors import DataError
from tests.datasets.generated_downloads import brats_case, isles_case, msd_task

app = typer.Typer()
app.add_typer(convert.app, name="convert")
app.command("split")(split.split)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def download(source: Path) -> Path:
    for patient in range(5):
        for point in (100, 101):
            brats_case(source, f"BraTS-GLI-{patient:05d}-{point}")
    return source


def test_brats_with_several_sources(source: Path, nnunet: Path) -> None:
    first, second = download(source / "a"), source / "b"
    brats_case(second, "BraTS-GLI-00900-100", seg=False)
    result = run(
        "convert", "brats2024", first, second, "--regions", "-np", 1, "--holdout", 0.2, "--seed", 3, "--dataset-id", 611
    )
    assert result.exit_code == 0, result.output
    content = json.loads((nnunet / "Dataset611_BraTS2024/dataset.json").read_text())
    assert content["regions_class_order"] == [2, 1, 3, 4]
    assert (
        f"{nnunet.parent}/preprocessed/Dataset611_BraTS2024/splits_final.json" in result.output
    )  # whole, to be copied
    assert "10 cases of 5 patients (5 with several time points)" in result.output
    assert "1 case without segmentation" in result.output
    assert "Train fold 0 only" in result.output
    assert "nnUNetv2_plan_and_preprocess -d 611 --verify_dataset_integrity" in result.output


def test_isles_grid_and_link(source: Path, nnunet: Path) -> None:
    for number in range(5):
        isles_case(source, f"sub-strokecase000{number}")
    assert run("convert", "isles2022", source, "--grid", "flair", "--link", "-np", 1).exit_code == 0
    image = nnunet / "Dataset502_ISLES2022/imagesTr/sub-strokecase0001_ses-0001_0002.nii.gz"
    assert image.is_symlink()
    assert run("convert", "isles2022", source, "--grid", "t1").exit_code == 2


def test_msd_dry_run(source: Path, nnunet: Path) -> None:
    result = run("convert", "msd", msd_task(source), "--dry-run", "-np", 1)
    assert result.exit_code == 0, result.output
    assert "Dry run: nothing was written." in result.output
    assert not any(nnunet.iterdir())


def test_skip_bad_shows_the_table(source: Path) -> None:
    download(source)
    (source / "BraTS-GLI-00000-100/BraTS-GLI-00000-100-t1c.nii.gz").unlink()
    stopped = run("convert", "brats2024", source, "-np", 1)
    assert isinstance(stopped.exception, DataError)
    assert stopped.exception.exit_code == 7
    assert "T1c: missing" in str(stopped.exception)
    result = run("convert", "brats2024", source, "-np", 1, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "1 bad case left out" in result.output
    assert "T1c: missing" in result.output


def test_split_any_dataset(source: Path, nnunet: Path) -> None:
    download(source)
    run("convert", "brats2024", source, "-np", 1)
    arguments = ("split", 501, "--group-regex", r"GLI-(\d+)", "--holdout", 0.2)
    assert isinstance(run(*arguments).exception, DataError)
    result = run(*arguments, "--overwrite")
    assert result.exit_code == 0, result.output
    (fold,) = json.loads((nnunet.parent / "preprocessed/Dataset501_BraTS2024/splits_final.json").read_text())
    assert len(fold["val"]) == 2
    assert fold["val"][0][:-1] == fold["val"][1][:-1]


@pytest.mark.parametrize("command", ["brats2024", "isles2022", "msd"])
def test_help_names_every_option(command: str) -> None:
    output = CliRunner().invoke(app, ["convert", command, "--help"], env={"COLUMNS": "200"}).output
    for option in ("--dataset-id", "--link", "-np", "--dry-run", "--skip-bad", "--holdout", "--seed"):
        assert option in output
