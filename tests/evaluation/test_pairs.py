"""Pairs of prediction and reference: every way in which their files may not hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.folders import measure_case
from nnunet_kd.evaluation.labels import read_labels
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.pairs import CasePair, check_pair, find_pairs
from tests.evaluation.helpers import DATASET_JSON, SPACING, evaluated, labels, write_image
from tests.volumes.formats import CUT_INSIDE, FORMATS, SILENT, silent_damage, written
from tests.volumes.test_reading import sheared


def test_missing_and_surplus_cases_are_named(tmp_path, dataset):
    (tmp_path / "pred" / "case_1.nii.gz").rename(tmp_path / "pred" / "stranger.nii.gz")
    with pytest.raises(DataError, match=r"pred lacks case_1\.nii\.gz; .*pred has stranger\.nii\.gz"):
        evaluated(tmp_path, dataset)
    with pytest.raises(DataError, match=r"labelsTr lacks case_9\.nii\.gz"):
        find_pairs(tmp_path / "pred", dataset / "labelsTr", ".nii.gz", ["case_9"])


def test_empty_and_absent_folders_are_named(tmp_path, dataset):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"prediction folder .*nothing has no \*\.nii\.gz"):
        find_pairs(tmp_path / "nothing", dataset / "labelsTr", ".nii.gz")
    with pytest.raises(DataError, match=r"reference folder .*absent does not exist"):
        find_pairs(tmp_path / "pred", tmp_path / "absent", ".nii.gz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": (1.0, 0.8, 2.5)}, r"spacing, \[1\.0, 0\.8, 2\.5\] against \[1\.0, 0\.8, 2\.0\]"),
        ({"origin": (5.0, -3.0, 2.5)}, r"origin, \[5\.0, -3\.0, 2\.5\] against"),
        ({"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}, "direction"),
        ({"array": np.zeros((10, 16, 15), dtype=np.uint8)}, "shape, 10x16x15 against 10x16x14"),
    ],
)
def test_other_geometry_is_refused_and_both_files_named(tmp_path, dataset, change, message):
    write_image(tmp_path / "pred" / "case_2.nii.gz", **({"array": labels(2)} | change))
    with pytest.raises(DataError, match=rf"pred/case_2\.nii\.gz and .*labelsTr/case_2\.nii\.gz differ in .*{message}"):
        evaluated(tmp_path, dataset)


def test_rounding_of_headers_is_no_other_geometry(tmp_path, dataset):
    near = tuple(step + 1e-5 for step in SPACING)
    write_image(tmp_path / "pred" / "case_2.nii.gz", labels(2), spacing=near)
    evaluation = evaluated(tmp_path, dataset)
    assert (len(evaluation.cases), evaluation.warnings) == (4, ())


def test_headers_a_fraction_of_a_voxel_apart_are_compared_with_a_warning(tmp_path, dataset):
    """nnU-Net compares voxels whatever the headers say."""
    before = evaluated(tmp_path, dataset)
    write_image(tmp_path / "pred" / "case_2.nii.gz", labels(2, 0.5), origin=(5.004, -3.0, 2.0))
    evaluation = evaluated(tmp_path, dataset)
    (warning,) = evaluation.warnings
    assert "voxels lie up to 0.004 mm apart" in warning
    assert "case_2" in warning
    np.testing.assert_array_equal(evaluation.values["dice"], before.values["dice"])
    files = [str(folder / "case_2.nii.gz") for folder in (dataset / "labelsTr", tmp_path / "pred")]
    theirs = compute_metrics(*files, SimpleITKIO(), [1, 2])["metrics"]
    assert evaluation.values["dice"][2] == pytest.approx([theirs[1]["Dice"], theirs[2]["Dice"]])
    write_image(tmp_path / "pred" / "case_2.nii.gz", labels(2, 0.5), origin=(5.1, -3.0, 2.0))
    with pytest.raises(DataError, match=r"up to 0\.1 mm apart\n.*CopyInformation"):
        evaluated(tmp_path, dataset)


def test_labels_that_are_not_quite_whole_numbers_are_rounded_with_a_warning(tmp_path, dataset):
    before = evaluated(tmp_path, dataset)
    for seed in range(4):
        stored = labels(seed, 0.5).astype(np.float32) * np.float32(0.99999994)
        write_image(tmp_path / "pred" / f"case_{seed}.nii.gz", stored)
    evaluation = evaluated(tmp_path, dataset)
    np.testing.assert_array_equal(evaluation.values["dice"], before.values["dice"])
    assert "rounded; the farthest was 1.2e-07 away" in evaluation.warnings[0]
    write_image(tmp_path / "pred" / "case_1.nii.gz", labels(1).astype(np.float32) * np.float32(0.99))
    with pytest.raises(DataError, match=r"case_1\.nii\.gz holds 0\.99\d*, 1\.98\d*, but dataset\.json knows 0, 1, 2"):
        evaluated(tmp_path, dataset)


@pytest.mark.parametrize("side", ["pred", "raw/Dataset999_Shells/labelsTr"])
def test_a_file_cut_short_is_named_and_refused(tmp_path, dataset, side):
    """SimpleITK reads it with zeros in the place of what is missing, and stock nnU-Net measures those."""
    path = tmp_path / side / "case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    assert SimpleITKIO().read_seg(str(path))[0].shape == (1, 10, 16, 14)
    with pytest.raises(DataError, match=rf"{side}/case_1\.nii\.gz is not whole"):
        evaluated(tmp_path, dataset)


def test_files_that_programs_leave_behind_are_passed_over(tmp_path, dataset):
    before = evaluated(tmp_path, dataset)
    for folder in (tmp_path / "pred", dataset / "labelsTr"):
        (folder / "._case_0.nii.gz").write_bytes(b"\0\5\26\7finder")
    np.testing.assert_array_equal(evaluated(tmp_path, dataset).values["dice"], before.values["dice"])


def test_the_file_beside_is_not_measured_in_place_of_the_one_named(tmp_path, dataset):
    write_image(tmp_path / "pred" / "case_1.nii", labels(1) * 0)
    with pytest.raises(DataError, match=r"case_1\.nii\.gz and case_1\.nii lie side by side"):
        evaluated(tmp_path, dataset)
    # nibabel reads what it is asked for
    (dataset / "dataset.json").write_text(json.dumps(DATASET_JSON | {"overwrite_image_reader_writer": "NibabelIO"}))
    assert len(evaluated(tmp_path, dataset).cases) == 4


def test_the_reader_is_that_of_the_predictions_plan(tmp_path):
    raw = tmp_path / "raw"
    for folder in (raw / "labelsTr", tmp_path / "pred"):
        folder.mkdir(parents=True)
        sheared(folder / "a.nii.gz")
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (tmp_path / "pred" / "plans.json").write_text(json.dumps({"image_reader_writer": "NibabelIO"}))
    assert evaluated(tmp_path, raw).per_case("dice").tolist() == [1]
    (tmp_path / "pred" / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    with pytest.raises(DataError, match=r"a\.nii\.gz cannot be read"):
        evaluated(tmp_path, raw)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """Every format's file as prediction and reference; what is measured of them."""
    folder = tmp_path_factory.mktemp("formats")
    scheme = read_labels(DATASET_JSON, folder)
    found = {}
    for name in FORMATS:
        prediction = written(name, folder / name / "pred")
        pair = CasePair("case", prediction, written(name, folder / name / "gt"))
        reader = FORMATS[name][1]
        assert check_pair(pair, scheme, reader).problems == ()
        measured = measure_case(pair, scheme, reader, MetricOptions())
        found[name] = (pair, prediction.read_bytes(), reader, measured)
    return scheme, found


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(list(FORMATS)), start=st.floats(0, 1), count=st.integers(1, 40), inside=st.booleans(),
    side=st.sampled_from(["prediction", "reference"]),
)  # fmt: skip
def test_damaged_files_are_refused_or_measured_as_the_whole_ones(whole_files, name, start, count, inside, side):
    scheme, found = whole_files
    pair, content, reader, measured = found[name]
    place = int(start * (len(content) - 1))
    kept = content[place + count :] if inside and name in CUT_INSIDE else b""
    getattr(pair, side).write_bytes(content[:place] + kept)
    try:
        if not (problems := check_pair(pair, scheme, reader).problems):
            np.testing.assert_equal(measure_case(pair, scheme, reader, MetricOptions()), measured)
        assert all("case" in problem for problem in problems)
    finally:
        getattr(pair, side).write_bytes(content)


@pytest.mark.parametrize("name", SILENT)
def test_damage_that_the_library_does_not_see_is_told(whole_files, name):
    scheme, found = whole_files
    pair, content, reader, _ = found[name]
    damages = silent_damage(name)
    for path in (pair.prediction, pair.reference):
        for damaged in damages[:: max(1, len(damages) // 5)]:
            path.write_bytes(damaged)
            assert str(path) in " ".join(check_pair(pair, scheme, reader).problems)
        path.write_bytes(content)


def test_all_problems_are_told_at_once(tmp_path, dataset):
    strange = labels(1)
    strange[0, 0, :2] = [7, 9]
    write_image(tmp_path / "pred" / "case_1.nii.gz", strange)
    write_image(dataset / "labelsTr" / "case_2.nii.gz", np.where(labels(2) == 1, 4, 0).astype(np.uint8))
    (tmp_path / "pred" / "case_3.nii.gz").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        evaluated(tmp_path, dataset)
    message = str(caught.value)
    assert "3 problem(s)" in message
    assert "pred/case_1.nii.gz holds 7, 9, but dataset.json knows 0, 1, 2" in message
    assert "labelsTr/case_2.nii.gz holds 4" in message
    assert "pred/case_3.nii.gz has no NIfTI header" in message


def test_the_ignore_label_is_allowed_in_references_only(tmp_path, dataset):
    scheme = read_labels(DATASET_JSON | {"labels": {"background": 0, "core": 1, "rim": 2, "ignore": 3}}, dataset)
    ignored = labels(0)
    ignored[0] = 3
    write_image(tmp_path / "pred" / "case_0.nii.gz", ignored)
    write_image(dataset / "labelsTr" / "case_0.nii.gz", ignored)
    (pair, *_) = find_pairs(tmp_path / "pred", dataset / "labelsTr", ".nii.gz")
    (problem,) = check_pair(pair, scheme, SimpleITKIO()).problems
    assert problem == f"{pair.prediction} holds 3, but dataset.json knows 0, 1, 2"
