"""Folders, against nnU-Net's own evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, compute_metrics_on_folder2, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.system.processes import worker_pool
from tests.evaluation.helpers import DATASET_JSON, evaluated, labels, write_image


def nnunet_summary(tmp_path, raw):
    """nnU-Net's own numbers for the same folders."""
    plans = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}}
    (tmp_path / "plans.json").write_text(json.dumps({**plans, "plans_name": "p", "dataset_name": "d"}))
    compute_metrics_on_folder2(
        str(raw / "labelsTr"),
        str(tmp_path / "pred"),
        str(raw / "dataset.json"),
        str(tmp_path / "plans.json"),
        str(tmp_path / "summary.json"),
        num_processes=1,
    )
    return load_summary_json(str(tmp_path / "summary.json"))


def assert_as_nnunet(evaluation, summary, keys):
    """Every case, every class, and the means over cases."""
    assert len(summary["metric_per_case"]) == len(evaluation.cases) > 1
    for entry, case in zip(summary["metric_per_case"], evaluation.cases, strict=True):
        assert entry["reference_file"].endswith(f"{case}.nii.gz")
        row = evaluation.cases.index(case)
        theirs = [entry["metrics"][key]["Dice"] for key in keys]
        assert evaluation.values["dice"][row] == pytest.approx(theirs, rel=1e-12, nan_ok=True)
    means = [evaluation.summary("dice", name).mean for name in evaluation.classes]
    assert means == pytest.approx([summary["mean"][key]["Dice"] for key in keys], rel=1e-12)


def test_dice_is_nnunets_own(tmp_path, dataset):
    # one class missing from both, and from one, in a case each
    reference, prediction = labels(0), labels(0, 0.5)
    reference[reference == 2] = 0
    prediction[prediction == 2] = 0
    write_image(dataset / "labelsTr" / "case_0.nii.gz", reference)
    write_image(tmp_path / "pred" / "case_0.nii.gz", prediction)
    only_core = np.where(labels(1) == 1, 1, 0).astype(np.uint8)
    write_image(tmp_path / "pred" / "case_1.nii.gz", only_core)
    evaluation = evaluated(tmp_path, dataset)
    assert_as_nnunet(evaluation, nnunet_summary(tmp_path, dataset), [1, 2])
    assert evaluation.summary("dice", "rim").left_out == 1
    assert evaluation.summary("hd95", "rim").left_out == 2
    assert evaluation.empty_counts("rim") == {"both_empty": 1, "only_reference_empty": 0, "only_prediction_empty": 1}
    assert 0.3 < evaluation.summary("dice", "core").mean < 0.999


def test_regions_and_ignore_label_are_nnunets_own(tmp_path, dataset):
    dataset_json = DATASET_JSON | {
        "labels": {"background": 0, "whole": [1, 2], "rim": [2], "ignore": 3},
        "regions_class_order": [1, 2],
    }
    (dataset / "dataset.json").write_text(json.dumps(dataset_json))
    for seed in range(4):
        reference = labels(seed)
        reference[:, :5] = 3
        write_image(dataset / "labelsTr" / f"case_{seed}.nii.gz", reference)
    evaluation = evaluated(tmp_path, dataset)
    assert evaluation.classes == ("whole", "rim")
    regions = [(1, 2), (2,)]
    for row, case in enumerate(evaluation.cases):
        files = [str(folder / f"{case}.nii.gz") for folder in (dataset / "labelsTr", tmp_path / "pred")]
        theirs = compute_metrics(*files, SimpleITKIO(), regions, ignore_label=3)["metrics"]
        assert evaluation.values["dice"][row] == pytest.approx([theirs[region]["Dice"] for region in regions])


def test_spacing_is_read_in_the_order_of_the_arrays(tmp_path):
    raw = tmp_path / "raw"
    reference = np.zeros((12, 12, 12), dtype=np.uint8)
    reference[3:8, 3:8, 3:8] = 1
    shifted = {"z": np.roll(reference, 1, 0), "y": np.roll(reference, 1, 1), "x": np.roll(reference, 1, 2)}
    for name, prediction in shifted.items():
        write_image(raw / "labelsTr" / f"{name}.nii.gz", reference, spacing=(1.0, 2.0, 5.0))
        write_image(tmp_path / "pred" / f"{name}.nii.gz", prediction, spacing=(1.0, 2.0, 5.0))
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON | {"labels": {"background": 0, "cube": 1}}))
    evaluation = evaluated(tmp_path, raw)
    found = dict(zip(evaluation.cases, evaluation.per_case("hd95", "cube"), strict=True))
    assert found == pytest.approx({"x": 1.0, "y": 2.0, "z": 5.0})
    assert evaluation.values["reference_volume"][0, 0] == pytest.approx(125 * 10 / 1000)


@pytest.mark.slow
@pytest.mark.nightly
def test_processes_give_the_same_as_one(tmp_path, dataset):
    with worker_pool(2) as pool:
        together = evaluated(tmp_path, dataset, pool=pool)
    alone = evaluated(tmp_path, dataset)
    assert alone.cases == together.cases
    for name, values in alone.values.items():
        np.testing.assert_array_equal(values, together.values[name])


def test_only_the_wanted_cases(tmp_path, dataset):
    for name in ("case_0", "case_3"):
        (tmp_path / "pred" / f"{name}.nii.gz").unlink()
    assert evaluated(tmp_path, dataset, cases=["case_2", "case_1"]).cases == ("case_1", "case_2")


def test_conventions_reach_the_metrics(tmp_path, dataset):
    empty = np.zeros_like(labels(0))
    for folder in (tmp_path / "pred", dataset / "labelsTr"):
        write_image(folder / "case_0.nii.gz", empty)
    write_image(tmp_path / "pred" / "case_1.nii.gz", empty)
    by_default = evaluated(tmp_path, dataset)
    assert by_default.summary("dice").cases == 3
    assert by_default.summary("hd95").cases == 2
    options = MetricOptions(empty="perfect", hd95_penalty=100.0)
    changed = evaluated(tmp_path, dataset, options=options)
    assert changed.per_case("dice")[:2].tolist() == [1, 0]
    assert changed.per_case("hd95")[:2].tolist() == [0, 100]


def test_files_hold_what_was_measured(tmp_path, dataset):
    evaluation = evaluated(tmp_path, dataset)
    evaluation.write_csv(tmp_path / "e.csv")
    evaluation.write_json(tmp_path / "e.json")
    header, *rows = (tmp_path / "e.csv").read_text().splitlines()
    assert header.startswith("case,class,dice,hd95,nsd,volume_difference,lesion_f1,reference_volume")
    assert len(rows) == 8
    assert float(rows[0].split(",")[2]) == pytest.approx(evaluation.values["dice"][0, 0])
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["cases"]["case_3"]["rim"]["nsd"] == evaluation.values["nsd"][3, 1]
    assert content["overall"]["dice"]["mean"] == pytest.approx(evaluation.summary("dice").mean)
