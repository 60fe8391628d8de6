"""The one list of what stock nnU-Net takes and we refuse, because its result would be wrong or not what was meant."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.dataset_conversion import convert_MSD_dataset as stock_msd
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_kd.datasets.case import ConversionOptions
from nnunet_kd.datasets.msd import convert_msd
from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.folders import evaluate_folder
from nnunet_kd.workflows.bench.pair import nnunet_folders
from tests.datasets.generated_downloads import msd_task
from tests.evaluation.helpers import labels, write_dataset, write_image
from tests.inference.test_formats import by_stock, by_us, images_of

PREDICTION, REFERENCE = Path("pred/case_1.nii.gz"), Path("raw/Dataset999_Shells/labelsTr/case_1.nii.gz")
IMAGE, LABEL = Path("imagesTr/hippocampus_002.nii.gz"), Path("labelsTr/hippocampus_002.nii.gz")
FIRST, SECOND, THIRD = (Path(f"case_{number:04d}.nii.gz") for number in range(3))


# how an input is broken -------------------------------------------------------------------------------------------------

Break = Callable[[Path], None]


def cut(name: Path) -> Break:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20]) and None


def shadow(name: Path) -> Break:
    """The same image without voxels beside it, not compressed."""

    def write(folder: Path) -> None:
        image = nibabel.load(folder / name)
        nibabel.save(
            nibabel.Nifti1Image(np.asanyarray(image.dataobj) * 0, image.affine), (folder / name).with_suffix("")
        )

    return write


def move(name: Path, millimetres: float) -> Break:
    def write(folder: Path) -> None:
        image = sitk.ReadImage(str(folder / name))
        x, y, z = image.GetOrigin()
        image.SetOrigin((x, y + millimetres, z))
        sitk.WriteImage(image, str(folder / name), True)

    return write


def foreign_label(name: Path) -> Break:
    def write(folder: Path) -> None:
        image = sitk.ReadImage(str(folder / name))
        image[2, 2, 2] = 7
        sitk.WriteImage(image, str(folder / name), True)

    return write


def rename(*names: tuple[Path, Path]) -> Break:
    def write(folder: Path) -> None:
        for old, new in names:
            (folder / old).rename(folder / new)

    return write


# the commands: what they are given, what stock makes of it, and ours -----------------------------------------------------


class Predict:
    @staticmethod
    def inputs(folder: Path) -> None:
        images_of("nifti, compressed", folder)
        shutil.copy(folder / FIRST, folder / SECOND)

    @staticmethod
    def stock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
        output = by_stock(sorted(folder.glob("*.nii.gz")), folder / "stock", "SimpleITKIO", ".nii.gz", 2)
        return (output / "case.nii.gz").is_file()

    @staticmethod
    def ours(folder: Path) -> Path:
        return by_us(folder, folder / "ours", "SimpleITKIO", ".nii.gz", 2)


class Evaluate:
    @staticmethod
    def inputs(folder: Path) -> None:
        raw = write_dataset(folder, cases=2, methods={"pred": 0.5})
        write_image(raw / "labelsTr" / "case_1.nii.gz", labels(1))

    @staticmethod
    def stock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
        found = compute_metrics(str(folder / REFERENCE), str(folder / PREDICTION), SimpleITKIO(), [1, 2])
        return all(0 <= found["metrics"][label]["Dice"] < 1 for label in (1, 2))

    @staticmethod
    def ours(folder: Path) -> object:
        raw = (folder / REFERENCE).parents[1]
        return evaluate_folder(folder / "pred", raw / "labelsTr", raw / "dataset.json")


class ConvertMSD:
    @staticmethod
    def inputs(folder: Path) -> None:
        msd_task(folder.parent, tests=1, folder=folder.name)

    @staticmethod
    def stock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
        monkeypatch.setattr(stock_msd, "nnUNet_raw", str(folder.parent / "stock_raw"))
        # in this process: nnU-Net's workers would import PyTorch once more each
        monkeypatch.setattr(stock_msd.multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
        stock_msd.convert_msd_dataset(str(folder), num_processes=1)
        return (folder.parent / "stock_raw" / "Dataset004_Hippocampus" / "dataset.json").is_file()

    @staticmethod
    def ours(folder: Path) -> object:
        return convert_msd(folder, options=ConversionOptions(processes=1))


REFUSED: dict[str, tuple[type[Predict] | type[Evaluate] | type[ConvertMSD], Break, str]] = {
    "an image that ends early, whose missing voxels ITK fills with zeros": (Predict, cut(FIRST), "is not whole"),
    "an image beside whose voxels ITK reads": (Predict, shadow(FIRST), "lie side by side"),
    "channels 0000 and 0002: another sequence may be taken for the second": (
        Predict, rename((SECOND, THIRD)), "0001.*is missing; .*one too many",
    ),
    "channels 0001 and 0002: both may be taken for others": (
        Predict, rename((SECOND, THIRD), (FIRST, SECOND)), "0000.*is missing; .*one too many",
    ),
    "channels that lie 30 mm apart, of which nnU-Net prints a warning": (
        Predict, move(SECOND, 30), "lies on another grid",
    ),
    "a prediction that ends early, measured as zeros": (Evaluate, cut(PREDICTION), r"pred/case_1\S+ is not whole"),
    "a reference that ends early, measured as zeros": (Evaluate, cut(REFERENCE), r"labelsTr/case_1\S+ is not whole"),
    "a prediction beside whose voxels ITK reads": (Evaluate, shadow(PREDICTION), "lie side by side"),
    "a reference beside whose voxels ITK reads": (Evaluate, shadow(REFERENCE), "lie side by side"),
    "a prediction that lies a voxel away, of which nnU-Net prints a warning": (
        Evaluate, move(PREDICTION, 0.8), "differ in origin",
    ),
    "a predicted label that the dataset does not have": (
        Evaluate, foreign_label(PREDICTION), r"case_1\S+ holds 7, but dataset\.json knows 0, 1, 2",
    ),
    "a training image that ends early, trained on as zeros": (ConvertMSD, cut(IMAGE), "is not whole"),
    "training labels that end early, trained on as background": (ConvertMSD, cut(LABEL), "is not whole"),
    "two files for one training image: which is meant is not known": (ConvertMSD, shadow(IMAGE), "there are two"),
    "two files for one case's labels": (ConvertMSD, shadow(LABEL), "there are two"),
    "labels that lie 30 mm from their image": (ConvertMSD, move(LABEL, 30), r"label: origin .* \(off by 30 mm\)"),
    "a training label that the dataset does not have": (ConvertMSD, foreign_label(LABEL), "holds 7; known are 0, 1, 2"),
}  # fmt: skip
"""Inputs that stock nnU-Net takes without an error: the command, what makes them, and what we say."""


@pytest.mark.parametrize("what", REFUSED)
def test_refused_though_stock_takes_it(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, broken, message = REFUSED[what]
    folder = tmp_path / "Task04_Hippocampus"  # a name that converters take
    folder.mkdir()
    with nnunet_folders(tmp_path / "nnunet"), contextlib.redirect_stdout(io.StringIO()):
        command.inputs(folder)
        broken(folder)
        before = sorted(path for path in tmp_path.rglob("*") if "._" not in path.name)
        with pytest.raises(DataError, match=message):
            command.ours(folder)
        assert sorted(path for path in tmp_path.rglob("*") if "._" not in path.name) == before
        assert command.stock(folder, monkeypatch)
