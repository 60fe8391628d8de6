"""What takes long: a fresh environment, and trained models on real images, kept for ``make test-nightly``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from nnunet_kd.export.onnx_export import OnnxOptions, export_onnx
from nnunet_kd.models.folder import open_model
from nnunet_kd_runtime.session import Options, run
from tests.conftest import REAL_TEACHER, SHARED
from tests.deployment import segmentation, stock_predictor, write_image
from tests.runtime.exported import export, write_images

pytestmark = pytest.mark.nightly
RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
IMAGES = SHARED / "data" / "Task04_Hippocampus" / "imagesTr"
ACDC = SHARED / "acdc"
ACDC_TEACHER = ACDC / "teacher" / "Dataset027_ACDC" / "nnUNetTrainer_20epochs__nnUNetPlans3mm__3d_fullres"
LARGEST_INSTALLATION, LARGEST_MEMORY = 350e6, 500e6


def test_fresh_environment(tmp_path: Path) -> None:
    """Size with pip in it, a case's peak memory, and ``--help``'s seconds."""
    pair = export(tmp_path / "model")
    images = write_images(tmp_path / "images")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    binary = environment / ("Scripts" if os.name == "nt" else "bin")
    python = binary / "python"
    constraints = ["-c", str(RUNTIME / "constraints.txt")] if sys.version_info >= (3, 11) else []
    subprocess.run([python, "-m", "pip", "install", "-q", str(RUNTIME), *constraints], check=True)
    size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    assert size <= LARGEST_INSTALLATION
    program = (
        "import sys, time, resource\n"
        "from nnunet_kd_runtime.command import main\n"
        "code = main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
        "sys.exit(code)\n"
    )
    arguments = [str(pair.onnx), str(images), "-o", str(tmp_path / "out"), "--threads", "1"]
    finished = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert int(finished.stdout.splitlines()[-1]) <= LARGEST_MEMORY
    assert (tmp_path / "out" / "case0.nii.gz").is_file()
    segment = ("import numpy\nfrom nnunet_kd_runtime import segment\n"
               f"print(segment({str(pair.onnx)!r}, numpy.ones((20, 20, 20)), (1, 1, 1)).shape)\n")  # fmt: skip
    assert "(20, 20, 20)" in subprocess.run([python, "-c", segment], capture_output=True, text=True, check=True).stdout


def compare(teacher: Path, images: Path, tmp_path: Path) -> tuple[int, float, int]:
    """Cases without a differing voxel, the worst case's share of equal voxels, and the number of cases."""
    with open_model(teacher, ("0",)) as model:
        export_onnx(model, tmp_path / "teacher.onnx", OnnxOptions())
    run(tmp_path / "teacher.onnx", [images], tmp_path / "runtime", Options())
    (tmp_path / "stock").mkdir()
    stock_predictor(teacher).predict_from_files_sequential(str(images), str(tmp_path / "stock"))
    shares = []
    for path in sorted((tmp_path / "stock").glob("*.nii.gz")):
        first, second = segmentation(path), segmentation(tmp_path / "runtime" / path.name)
        assert first.max() > 0
        shares.append(float((first == second).mean()))
    return sum(share == 1 for share in shares), min(shares), len(shares)


def validation_cases(folder: Path) -> list[str]:
    cases: list[str] = json.loads((folder / "splits_final.json").read_text())[0]["val"]
    return cases


def turned(path: Path, output: Path, number: int) -> None:
    """The image on an anisotropic, oblique grid."""
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    spacing = [(0.8, 1.2, 3.5), (1.0, 4.2, 0.9), (1.7, 1.7, 1.7)][number % 3]
    turn = sitk.Euler3DTransform(image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()]))
    turn.SetRotation(0.1 * number, 0.15, -0.07 * number)
    size = [max(4, int(n * s / new)) for n, s, new in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection(turn.GetMatrix())
    grid.SetOrigin(turn.TransformPoint(image.GetOrigin()))
    sitk.WriteImage(sitk.Resample(image, grid), str(output))


@pytest.mark.skipif(not (REAL_TEACHER.is_dir() and IMAGES.is_dir()), reason="needs the real teacher and images")
@pytest.mark.parametrize("grids", ["own", "turned"])
def test_hippocampus(grids: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    cases = validation_cases(REAL_TEACHER.parent)
    for number, case in enumerate(cases if grids == "own" else cases[:10]):
        output = images / f"{case}_0000.nii.gz"
        source = IMAGES / f"{case}.nii.gz"
        if grids == "own":
            shutil.copy(source, output)
        else:
            turned(source, output, number)
    identical, worst, total = compare(REAL_TEACHER, images, tmp_path)
    assert worst >= 0.9999
    if grids == "own":
        assert total == 40
        assert identical >= 38


@pytest.mark.skipif(not ACDC_TEACHER.is_dir(), reason="needs the ACDC teacher and images")
def test_acdc(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for case in validation_cases(ACDC)[:6]:
        shutil.copy(ACDC / "Dataset027_ACDC" / "imagesTr" / f"{case}_0000.nii.gz", images)
    assert compare(ACDC_TEACHER, images, tmp_path)[1] >= 0.9999


def test_large_single_axes(tmp_path: Path) -> None:
    """Long thin images, many windows."""
    pair = export(tmp_path / "model")
    images = tmp_path / "images"
    for number, shape in enumerate(((200, 14, 20), (13, 190, 12), (20, 16, 180))):
        values = np.random.default_rng(number).normal(60, 30, shape).astype(np.float32)
        write_image(values, images / f"case{number}_0000.nii.gz", (1.0, 1.1, 0.9))
    stock, own = pair.predict_stock(images, tmp_path / "stock"), pair.predict(images, tmp_path / "own")
    for path in stock.glob("*.nii.gz"):
        assert (segmentation(path) == segmentation(own / path.name)).mean() >= 0.9999
