"""A model, images and a command so small that everything takes seconds."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import Result
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.errors import NnunetKdError
from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.nnunet.environment import VARIABLES
from nnunet_kd.workflows.bench.pair import DATASET_JSON, nnunet_folders, write_untrained_teacher
from nnunet_kd.workflows.shrink.model import Teacher
from nnunet_kd.workflows.shrink.request import Places
from nnunet_kd.workflows.shrink.training import student_model
from tests.conftest import make_plans
from tests.training.tiny_training import without_pictures

cli._register()
SIZE = 12
LONG = ("--iterations", "2")
FAST = ("--device", "cpu", "--set", "inheritance.voxels=2048", "--set", "inheritance.heads=logits", "--no-mirroring")


def tiny_plans(**more: Any) -> dict[str, Any]:
    plans = make_plans(**{"features": (8, 16, 16), "patch": (8, 8, 8), **more})
    statistics = {
        "mean": 100.0, "median": 100.0, "std": 20.0, "min": 0.0, "max": 200.0, "percentile_00_5": 50.0, "percentile_99_5": 150.0,
    }  # fmt: skip
    plans["foreground_intensity_properties_per_channel"] = {str(n): statistics for n in range(more.get("channels", 1))}
    return plans


def write_model(
    root: Path, plans: dict[str, Any] | None = None, dataset: Mapping[str, Any] = DATASET_JSON, folds: int = 1
) -> Path:
    """A model folder of random weights, outside of any nnU-Net folder."""
    plans = plans or tiny_plans()
    (configuration,) = plans["configurations"]
    with nnunet_folders(root / "elsewhere"):
        made = write_untrained_teacher(plans, configuration, dataset)
    target = root / made.name
    shutil.copytree(made, target)
    shutil.rmtree(root / "elsewhere")
    for fold in range(1, folds):
        shutil.copytree(target / "fold_0", target / f"fold_{fold}")
    return target


def zipped(model: Path, dataset: str = "Dataset998_Tiny") -> Path:
    archive = model.parent / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in model.rglob("*"):
            if path.is_file():
                file.write(path, f"{dataset}/{model.name}/{path.relative_to(model)}")
    return archive


def write_images(
    folder: Path, count: int = 5, channels: int = 0, ending: str = ".nii.gz", shape: tuple[int, ...] = (SIZE,) * 3
) -> Path:
    """Random images, smooth as those of patients; ``channels`` 0: one file a case, without a channel number in its name."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        for channel in range(max(1, channels)):
            values = gaussian_filter(random.normal(100, 60, shape), [0.7 if size > 1 else 0 for size in shape])
            image = sitk.GetImageFromArray(values.astype(np.float32))
            name = f"patient_{number}" + (f"_{channel:04d}" if channels else "")
            sitk.WriteImage(image, str(folder / f"{name}{ending}"))
    return folder


def write_labels(folder: Path, cases: list[str], highest: int = 2) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for case in cases:
        labels = random.integers(0, highest + 1, (SIZE,) * 3).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / f"{case}.nii.gz"))
    return folder


def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of nnU-Net, no worker processes, no pictures that take longer than everything else."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    without_pictures(monkeypatch)


def shrink(*arguments: str | Path) -> Result:
    """The command as a user types it, fast."""
    return CliRunner().invoke(cli.app, ["shrink", *map(str, arguments), *FAST])


def error_of(result: Result) -> str:
    """What the command line would print."""
    assert result.exception is not None, result.output
    return str(result.exception)


def state_of(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "work" / "state.json").read_text()))


def zip_alone(places: Places, teacher: Teacher) -> str:
    """In the place of ``export_student``: without ONNX, whose exporter takes longer than everything else."""
    export_folder(student_model(places, teacher), places.student_zip, FolderOptions(overwrite=True))
    return "not asked for here"


def refused(kind: type[NnunetKdError], *arguments: str | Path) -> str:
    """What the command says that refuses these arguments."""
    result = shrink(*arguments, *LONG)
    assert isinstance(result.exception, kind), (result.output, result.exception)
    return error_of(result)
