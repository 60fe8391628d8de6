"""``nnunet-kd conform`` on a trained student: both programs, one table, one page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from nnunet_kd.errors import ModelError
from nnunet_kd.evaluation import conformance
from nnunet_kd.evaluation.conformance import CaseResult, Conformance, ConformanceRequest, installed_bytes, mean_dice
from nnunet_kd.inference.cases import InputCase
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.deployment import run_command, write_image
from tests.export.conftest import cases, student
from tests.training.test_trainer import cascade_plans

__all__ = ["cases", "student"]

PEAKS: dict[str, int | None] = {"nnunetv2": None, "nnunet-kd-runtime": 200_000_000}
SIZES = {"nnunetv2": 6_600_000_000, "nnunet-kd-runtime": 337_000_000}


@pytest.mark.nightly
def test_conform(student: Path, cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "conformance"
    command = ("conform", str(student), str(cases[0]), "-o", str(output), "-f", "0")
    code, told, errors = run_command(*command)
    assert code == 0, errors
    rows = list(csv.DictReader((output / "conformance.csv").open()))
    assert [row["case"] for row in rows] == ["case0", "case1", "case2"]
    for row in rows:
        assert int(row["differing"]) <= 1e-4 * int(row["voxels"])
        assert float(row["Dice"]) > 0.999
        assert float(row["runtime (s)"]) > 0
        assert float(row["nnU-Net (s)"]) > 0
    assert "of 3 cases identical" in told
    page = (output / "conformance.html").read_text()
    assert "Every case agrees in at least 99.99% of its voxels." in page
    assert all(row["case"] in page for row in rows)
    worse = CaseResult("case0", 1000, 1, 0.9, 2.0, 1.0)
    monkeypatch.setattr(
        conformance, "conform", lambda model, given: Conformance((worse,), PEAKS, SIZES, 1, "onnxruntime")
    )
    code, _, errors = run_command(*command)
    assert (code, "a case agrees in only 99.9000%" in errors) == (8, True), errors


def test_page(tmp_path: Path) -> None:
    for differing, words in ((0, "Every case agrees in at least 99.99%"), (1, "A case agrees in only 99.9000%")):
        case = CaseResult("case<0>", 1000, differing, 0.9, 2.0, 1.0)
        conformance._write(Conformance((case,), PEAKS, SIZES, 1, "onnxruntime"), tmp_path)
        page = (tmp_path / "conformance.html").read_text()
        assert words in page
        assert "case&lt;0&gt;" in page
        assert "not known nnunetv2, 200 MB nnunet-kd-runtime" in (tmp_path / "conformance.md").read_text()


def test_dice() -> None:
    first = np.array([0, 1, 1, 2, 2, 2])
    assert mean_dice(first, first) == 1
    assert mean_dice(first * 0, first * 0) == 1
    assert mean_dice(first, np.array([0, 1, 0, 2, 2, 2])) == pytest.approx((2 / 3 + 1) / 2)
    assert mean_dice(first, np.array([0, 1, 1, 0, 0, 0])) == pytest.approx(0.5)


def test_installed_sizes() -> None:
    sizes = {name: installed_bytes(name) for name in ("nnunetv2", "nnunet-kd-runtime", "numpy", "no-such-package")}
    assert sizes["no-such-package"] == 0
    assert 0 < sizes["numpy"] < sizes["nnunet-kd-runtime"] < sizes["nnunetv2"]


def test_results_of_another_model_are_not_replaced_unasked(
    student: Path, cases: tuple[Path, Path], tmp_path: Path
) -> None:
    left = tmp_path / "stock" / "case1.nii.gz"
    left.parent.mkdir()
    left.write_bytes(b"another model's")
    code, _, errors = run_command("conform", str(student), str(cases[0]), "-o", str(tmp_path), "-f", "0")
    assert (code, left.read_bytes()) == (7, b"another model's")
    assert "case1. This run is with" in " ".join(errors.split())
    assert "--overwrite" in errors


def test_a_comparison_that_was_stopped_can_be_repeated(
    student: Path, cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def predict(program: str, model: Any, found: Sequence[InputCase], given: ConformanceRequest) -> dict[str, Any]:
        asked.append(program)
        if program == "runtime":
            raise ModelError("the runtime could not predict these images")
        (given.output / program).mkdir(exist_ok=True)
        for case in found:
            case.output.write_bytes(b"a segmentation")
        return {}

    monkeypatch.setattr(conformance, "export_onnx", lambda *_: None)
    monkeypatch.setattr(conformance, "_measured", predict)
    for _ in range(2):
        code, _, errors = run_command("conform", str(student), str(cases[0]), "-o", str(tmp_path), "-f", "0")
        assert (code, "the runtime could not predict" in errors) == (8, True), errors
    assert asked == ["stock", "runtime"] * 2


def test_the_second_stage_of_a_cascade_is_told_what_it_lacks(folders: Path, tmp_path: Path) -> None:
    model = write_untrained_teacher(cascade_plans(), "3d_cascade_fullres", DATASET_JSON)
    images = tmp_path / "images"
    write_image(np.zeros((8, 8, 8), np.float32), images / "a_0000.nii.gz")
    code, _, errors = run_command("conform", str(model), str(images), "-o", str(tmp_path / "out"))
    assert (code, "with 3d_lowres first and give that folder as --previous-stage" in errors) == (3, True), errors
    for more in ((), ("--int8",)):
        command = ("export", str(model), str(tmp_path / "out.onnx"), "--to", "onnx", "-i", str(images), *more)
        code, _, errors = run_command(*command)
        assert (code, "what 3d_lowres segmented, which cannot be given here" in " ".join(errors.split())) == (
            3,
            True,
        ), errors
