"""Brier score and calibration error against plain loops, and through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from nnunet_kd import cli
from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.calibration import BINS, MEASURES, Calibration, measure_channel, pool_calibrations

cli._register()


def by_loops(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    error = 0.0
    for place in range(BINS):
        low, high = place / BINS, (place + 1) / BINS
        inside = [n for n in range(len(p)) if low <= p[n] < high or (place == BINS - 1 and p[n] == 1)]
        if inside:
            error += len(inside) / len(p) * abs(np.mean(p[inside]) - np.mean(y[inside]))
    return {
        "brier": sum((a - b) ** 2 for a, b in zip(p, y, strict=True)) / len(p),
        "ece": error,
        "undecided": sum(0.01 < a < 0.99 for a in p) / len(p),
    }


def test_against_loops() -> None:
    random = np.random.default_rng(0)
    p = np.concatenate([random.beta(0.3, 0.3, 500), [0.0, 1.0, 1.0]])
    y = random.random(503) < p
    assert measure_channel(p, y) == pytest.approx(by_loops(p, y.astype(float)), rel=1e-9)


def test_what_is_known() -> None:
    truth = np.array([True, False, True, False])
    assert measure_channel(truth.astype(float), truth) == {"brier": 0, "ece": 0, "undecided": 0}
    assert measure_channel(np.full(4, 0.5), truth) == {"brier": 0.25, "ece": 0, "undecided": 1}
    assert measure_channel(1.0 - truth, truth) == {"brier": 1, "ece": 1, "undecided": 0}
    assert all(np.isnan(value) for value in measure_channel(np.zeros(0), np.zeros(0, bool)).values())


def test_folds_are_pooled_and_seeds_averaged() -> None:
    def one(cases: tuple[str, ...], value: float) -> Calibration:
        values = {measure.name: np.full((len(cases), 1), value) for measure in MEASURES}
        return Calibration(cases, ("a",), values)

    pooled = pool_calibrations([[one(("x", "y"), 0.1), one(("z",), 0.4)], [one(("x", "y"), 0.3), one(("z",), 0.6)]])
    assert pooled.cases == ("x", "y", "z")
    assert pooled.values["brier"][:, 0] == pytest.approx([0.2, 0.2, 0.5])
    assert pooled.summary("ece", "a").mean == pytest.approx(0.3)


LABELS = {"background": 0, "a": 1, "b": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


@pytest.mark.parametrize("regions", [False, True])
def test_through_the_command(regions: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    predicted, reference = tmp_path / "predicted", tmp_path / "reference"
    predicted.mkdir()
    reference.mkdir()
    truth = random.integers(0, 4 if regions else 3, (4, 5, 6)).astype(np.uint8)
    description = {
        "labels": REGIONS if regions else LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "T1"}, "numTraining": 1,
        **({"regions_class_order": [1, 2]} if regions else {}),
    }  # fmt: skip
    (predicted / "dataset.json").write_text(json.dumps(description))
    for folder, array in ((predicted, np.where(truth == 3, 0, truth)), (reference, truth)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / "case.nii.gz"))
    arguments = ["evaluate", str(predicted), str(reference), "--probabilities", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nnunet_kd.workflows.evaluation.evaluate_folder", None)  # told before anything is measured
        result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, DataError)
    assert "for 1 of 1 case:" in str(result.exception)

    probabilities = random.random((2 if regions else 3, 4, 5, 6)).astype(np.float32)
    np.savez_compressed(predicted / "case.npz", probabilities=probabilities)
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    header, *rows = (predicted / "evaluation_probabilities.csv").read_text().splitlines()
    assert header == "case,class,brier,ece,undecided"
    counted = truth != 3
    wanted = {"whole": truth > 0, "core": truth == 2} if regions else {"a": truth == 1, "b": truth == 2}
    for place, (row, (name, mask)) in enumerate(zip(rows, wanted.items(), strict=True)):
        _, class_name, *values = row.split(",")
        assert class_name == name
        channel = probabilities[place if regions else place + 1][counted]
        assert [float(value) for value in values] == pytest.approx(
            list(by_loops(channel, mask[counted] * 1.0).values())
        )

    np.savez_compressed(predicted / "case.npz", probabilities=probabilities[:1])
    assert "has the shape" in str(CliRunner().invoke(cli.app, arguments).exception)
    for damaged in (b"PK\3\4 cut short", b""):
        (predicted / "case.npz").write_bytes(damaged)
        assert "cannot be read as probabilities" in str(CliRunner().invoke(cli.app, arguments).exception)
