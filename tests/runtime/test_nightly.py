"""What takes long: a fresh environment, and trained models on real images, kept for ``make test-nightly``."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from tests.conftest import REAL_TEACHER
from tests.deployment import segmentation, write_image
from tests.runtime.exported import export, write_images
from tests.runtime.real_images import (
    ACDC,
    ACDC_RAW,
    ACDC_TEACHER,
    HIPPOCAMPUS,
    compare,
    copy_acdc,
    copy_hippocampus,
    hippocampus_cases,
    split,
)

pytestmark = pytest.mark.nightly
RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
MEMORY = RUNTIME.parent / "nnunet_kd" / "system" / "memory.py"
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
        "import runpy, sys\n"
        "from nnunet_kd_runtime.command import main\n"
        "code = main(sys.argv[1:])\n"
        f"print(runpy.run_path({str(MEMORY)!r})['peak_resident_bytes']())\n"
        "sys.exit(code)\n"
    )
    arguments = [str(pair.onnx), str(images), "-o", str(tmp_path / "out"), "--threads", "1"]
    finished = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert int(finished.stdout.splitlines()[-1]) <= LARGEST_MEMORY
    assert (tmp_path / "out" / "case0.nii.gz").is_file()
    segment = ("import numpy\nfrom nnunet_kd_runtime import segment\n"
               f"print(segment({str(pair.onnx)!r}, numpy.ones((20, 20, 20)), (1, 1, 1)).shape)\n")  # fmt: skip
    assert "(20, 20, 20)" in subprocess.run([python, "-c", segment], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not (REAL_TEACHER.is_dir() and HIPPOCAMPUS.is_dir()), reason="needs the real teacher and images")
@pytest.mark.parametrize("grids", ["own", "turned"])
def test_hippocampus(grids: str, tmp_path: Path) -> None:
    cases = hippocampus_cases("val")
    images = copy_hippocampus(tmp_path / grids, cases if grids == "own" else cases[:10], turn=grids == "turned")
    found = compare(REAL_TEACHER, images, tmp_path / "compared")
    assert found.worst >= 0.9999
    assert found.empty == 0
    if grids == "own":
        assert len(found.differing) == 40
        assert found.identical >= 38


@pytest.mark.skipif(not ACDC_TEACHER.is_dir(), reason="needs the ACDC teacher and images")
def test_acdc(tmp_path: Path) -> None:
    images = copy_acdc(tmp_path / "acdc", split(ACDC, "val")[:6])
    found = compare(ACDC_TEACHER, images, tmp_path / "compared", ACDC_RAW / "labelsTr")
    assert found.worst >= 0.9999
    assert found.dice > 0.7


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
