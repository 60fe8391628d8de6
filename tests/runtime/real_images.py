"""Real images beside the repository, and a model by both programs on them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_kd.evaluation.conformance import mean_dice
from nnunet_kd.export.onnx_export import OnnxOptions, export_onnx
from nnunet_kd.models.folder import open_model
from nnunet_kd_runtime.session import Options, run
from tests.conftest import REAL_TEACHER, SHARED
from tests.deployment import segmentation, stock_predictor

HIPPOCAMPUS = SHARED / "data" / "Task04_Hippocampus"
ACDC = SHARED / "acdc"
ACDC_RAW = ACDC / "Dataset027_ACDC"
ACDC_TEACHER = ACDC / "teacher" / ACDC_RAW.name / "nnUNetTrainer_20epochs__nnUNetPlans3mm__3d_fullres"
GRIDS = [(0.8, 1.2, 3.5), (1.0, 4.2, 0.9), (1.7, 1.7, 1.7)]
"""Millimetres along x, y, z of images that are turned."""


def split(folder: Path, part: str) -> list[str]:
    """Cases of fold 0's ``train`` or ``val``."""
    cases: list[str] = json.loads((folder / "splits_final.json").read_text())[0][part]
    return cases


def hippocampus_cases(part: str) -> list[str]:
    return split(REAL_TEACHER.parent, part)


def turned(image: sitk.Image, number: int) -> sitk.Image:
    """The image on an anisotropic, oblique grid, another for each number."""
    spacing = GRIDS[number % len(GRIDS)]
    turn = sitk.Euler3DTransform(image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()]))
    turn.SetRotation(0.1 * number, 0.15, -0.07 * number)
    size = [max(4, int(n * s / new)) for n, s, new in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection((np.reshape(turn.GetMatrix(), (3, 3)) @ np.reshape(image.GetDirection(), (3, 3))).ravel())
    grid.SetOrigin(turn.TransformPoint(image.GetOrigin()))
    return sitk.Resample(image, grid)


def copy_hippocampus(folder: Path, cases: Sequence[str], turn: bool = False) -> Path:
    """The images as nnU-Net wants them, on their own or on turned grids."""
    folder.mkdir(parents=True)
    for number, case in enumerate(cases):
        source, output = HIPPOCAMPUS / "imagesTr" / f"{case}.nii.gz", folder / f"{case}_0000.nii.gz"
        if turn:
            sitk.WriteImage(turned(sitk.ReadImage(str(source), sitk.sitkFloat32), number), str(output))
        else:
            shutil.copy(source, output)
    return folder


def copy_acdc(folder: Path, cases: Sequence[str]) -> Path:
    folder.mkdir(parents=True)
    for case in cases:
        shutil.copy(ACDC_RAW / "imagesTr" / f"{case}_0000.nii.gz", folder)
    return folder


@dataclass(frozen=True)
class Agreement:
    """Both programs' segmentations of the same images.

    Attributes:
        differing: voxels, case by case.
        worst: the smallest share of equal voxels of a case.
        dice: of nnU-Net's segmentations to the references, the mean; NaN without references.
        empty: cases without any foreground.
    """

    differing: tuple[int, ...]
    worst: float
    dice: float
    empty: int

    @property
    def identical(self) -> int:
        return sum(count == 0 for count in self.differing)


def compare(
    model: Path, images: Path, folder: Path, references: Path | None = None, backend: str = "onnxruntime"
) -> Agreement:
    """Export the model and predict with stock nnU-Net and with the runtime; what was predicted before is kept."""
    onnx = folder / "model.onnx"
    if not onnx.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with open_model(model, ("0",)) as opened:
            export_onnx(opened, onnx, OnnxOptions())
    stock, own = folder / f"stock-{images.name}", folder / f"{backend}-{images.name}"
    if not stock.is_dir():
        stock.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            stock_predictor(model).predict_from_files_sequential(str(images), str(stock))
    run(onnx, [images], own, Options(backend=backend, threads=1))
    differing, shares, scores, empty = [], [], [], 0
    for path in sorted(stock.glob("*.nii.gz")):
        first, second = segmentation(path), segmentation(own / path.name)
        differing.append(int(np.sum(first != second)))
        shares.append(1 - differing[-1] / first.size)
        empty += int(first.max() == 0)
        if references is not None:
            scores.append(mean_dice(first, segmentation(references / path.name)))
    found = Agreement(tuple(differing), min(shares), float(np.mean(scores)) if scores else float("nan"), empty)
    print(
        f"{images.name}, {backend}: {found.identical} of {len(differing)} cases without a differing voxel, worst case "
        f"{100 * found.worst:.4f}% equal, Dice {found.dice:.3f}, {found.empty} without foreground"
    )
    return found
