"""``predict``: stock nnU-Net's segmentation from every backend, in whole files, resumable; and clear errors for bad input."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_kd.errors import DataError, MissingRequirement, SettingsError
from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.inference import predictor as predictor_module
from nnunet_kd.inference.cases import InputCase, find_cases
from nnunet_kd.inference.record import RECORD, ModelOrigin, PredictionRecord
from nnunet_kd.inference.session import RunResult
from nnunet_kd.models.folder import open_model
from tests.deployment import ball, run_command, segmentation, stock_prediction, stock_predictor, write_image
from tests.inference.predicting import Cases, files, refuse, run


def agreement(first: Path, second: Path) -> float:
    """Share of equal voxels over all segmentations of ``first``."""
    pairs = [(segmentation(path), segmentation(second / path.name)) for path in sorted(first.glob("*.nii.gz"))]
    assert len(pairs) == 3
    return float(np.mean(np.concatenate([(a == b).ravel() for a, b in pairs])))


# same segmentation -----------------------------------------------------------------------------------------------------


def test_torch_is_identical_to_stock_nnunet(student: Path, cases: Cases, stock: Path, tmp_path: Path) -> None:
    result = run(cases[0], tmp_path / "out", student, probabilities=True)
    assert (result.predicted, result.kept, result.backend) == (3, 0, "torch")
    assert agreement(stock, tmp_path / "out") == 1
    for path in stock.glob("*.npz"):
        own = np.load(tmp_path / "out" / path.name)["probabilities"]
        assert np.array_equal(np.load(path)["probabilities"], own)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in stock.iterdir()} - {"predict_from_raw_data_args.json"} | {RECORD}
    assert {label for path in stock.glob("*.nii.gz") for label in np.unique(segmentation(path))} == {0, 1, 2}


def test_several_folds_are_nnunets(student: Path, cases: Cases, tmp_path: Path) -> None:
    both = stock_prediction(student, cases[0], tmp_path / "both", (0, 1))
    run(cases[0], tmp_path / "ours", student, folds=())
    assert agreement(both, tmp_path / "ours") == 1


@pytest.mark.parametrize(("mirroring", "step"), [(False, 0.5), (True, 1.0)])
def test_no_mirroring_and_larger_steps_are_nnunets(
    student: Path, cases: Cases, stock: Path, tmp_path: Path, mirroring: bool, step: float
) -> None:
    predictor = stock_predictor(student)
    predictor.use_mirroring, predictor.tile_step_size = mirroring, step
    expected, own = tmp_path / "stock", tmp_path / "own"
    expected.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.predict_from_files_sequential(str(cases[0]), str(expected), save_probabilities=True)
    run(cases[0], own, student, mirroring=mirroring, step=step, probabilities=True)
    for path in expected.glob("*.npz"):
        wanted, found, default = (np.load(place / path.name)["probabilities"] for place in (expected, own, stock))
        assert np.array_equal(found, wanted)
        assert not np.array_equal(found, default)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_runtimes_give_the_same_segmentation(
    exported: Path, cases: Cases, stock: Path, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", "true")  # as trainings like it
    pytest.importorskip(backend, reason=f"needs the extra that brings {backend}")
    assert run(cases[0], tmp_path / "out", exported, backend=backend).backend == backend
    assert agreement(stock, tmp_path / "out") >= 0.9999


def test_archive(student: Path, cases: Cases, stock: Path, tmp_path: Path) -> None:
    with open_model(student) as model:
        archive = export_folder(model, tmp_path / "student.zip", FolderOptions())
    run(cases[0], tmp_path / "out", archive)
    assert agreement(stock, tmp_path / "out") == 1


# which files -----------------------------------------------------------------------------------------------------------


def test_files_of_one_case_in_another_order(student: Path, cases: Cases, tmp_path: Path) -> None:
    channels = [cases[0] / f"case1_{channel:04d}.nii.gz" for channel in (1, 0)]
    with pytest.raises(DataError, match="give them in the order of their channel numbers"):
        run(channels, tmp_path / "out", student)


def test_single_files(student: Path, cases: Cases, stock: Path, tmp_path: Path) -> None:
    channels = [cases[0] / f"case1_{channel:04d}.nii.gz" for channel in (0, 1)]
    expected = segmentation(stock / "case1.nii.gz")
    run(channels, tmp_path / "named.nii.gz", student)
    run(channels[0], tmp_path / "folder", student)  # the second channel is found beside the first
    assert np.array_equal(segmentation(tmp_path / "named.nii.gz"), expected)
    assert np.array_equal(segmentation(tmp_path / "folder" / "case1.nii.gz"), expected)


def test_resumes_after_a_crash(
    student: Path, cases: Cases, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    export = predictor_module.export_case

    def crash_on_the_second(*arguments: Any) -> None:
        export(*arguments)
        if arguments[3].name == "case1":
            raise OSError("No space left on device")

    monkeypatch.setattr(predictor_module, "export_case", crash_on_the_second)
    with pytest.raises(MissingRequirement, match=r"case1\.nii\.gz could not be written: No space left"):
        run(cases[0], output, student)
    assert {path.name for path in output.iterdir()} >= {"case0.nii.gz"}
    assert not (output / "case1.nii.gz").exists()
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    kept = (output / "case0.nii.gz").stat().st_mtime_ns
    result = run(cases[0], output, student)
    assert result.predicted + result.kept == 3
    assert result.kept >= 1
    assert (output / "case0.nii.gz").stat().st_mtime_ns == kept
    assert agreement(stock, output) == 1
    assert run(cases[0], output, student) == RunResult(0, 3, "torch")
    (output / "case0.nii.gz").write_bytes(b"old")
    assert run(cases[0], output, student, overwrite=True).predicted == 3
    assert agreement(stock, output) == 1


def test_what_macos_leaves_behind_is_passed_over(student: Path, images: Path, stock: Path, tmp_path: Path) -> None:
    for path in list(images.iterdir()):
        (images / f"._{path.name}").write_bytes(b"\0\5\26\7finder")
    assert run(images, tmp_path / "out", student).predicted == 3
    assert agreement(stock, tmp_path / "out") == 1


def test_plain_nifti_that_is_named_gz_is_predicted_as_stock_does(
    student: Path, images: Path, stock: Path, tmp_path: Path
) -> None:
    path = images / "case1_0001.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    run(images, tmp_path / "out", student)
    assert agreement(stock, tmp_path / "out") == 1


def test_the_file_beside_is_not_predicted(student: Path, images: Path, tmp_path: Path) -> None:
    write_image(ball(5)[0][1], images / "case1_0001.nii")
    refuse(images, student, r"case1_0001\.nii\.gz and case1_0001\.nii lie side by side")
    (images / "case1_0001.nii").unlink()
    write_image(ball(5)[1], tmp_path / "out" / "case2.nii")
    with pytest.raises(DataError, match=r"case2\.nii would lie beside the new case2\.nii\.gz"):
        run(images, tmp_path / "out", student)


def test_an_output_that_ends_in_nii_is_a_file(student: Path, cases: Cases, stock: Path, tmp_path: Path) -> None:
    image = cases[0] / "case1_0000.nii.gz"
    run(image, tmp_path / "result.nii", student)
    assert {path.name for path in tmp_path.iterdir()} == {"result.nii", RECORD}
    assert np.array_equal(segmentation(tmp_path / "result.nii"), segmentation(stock / "case1.nii.gz"))
    with pytest.raises(
        SettingsError, match=r"result\.nrrd must be a folder, or a file that ends in \.nii\.gz or \.nii"
    ):
        run(image, tmp_path / "result.nrrd", student)


def test_an_image_is_never_replaced(exported: Path, cases: Cases, tmp_path: Path) -> None:
    model = json.loads(exported.with_suffix(".json").read_text())["dataset_json"] | {"channel_names": {"0": "T1"}}
    image = tmp_path / "scan.nii.gz"
    shutil.copy(cases[0] / "case1_0000.nii.gz", image)
    with pytest.raises(DataError, match="would be written over the image"):
        find_cases([image], tmp_path, model)


# whose results ---------------------------------------------------------------------------------------------------------


def test_results_of_another_model_stop_a_run_and_are_replaced_on_request(
    exported: Path, student: Path, cases: Cases, stock: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    single = cases[0] / "case0_0000.nii.gz"
    run(single, output, exported)
    before = files(output)
    with pytest.raises(
        DataError, match=rf"of the model {exported} \(by the hash.*: case0\. This run is with {student}"
    ):
        run(cases[0], output, student)
    assert files(output) == before
    for ending in (".npz", ".pkl"):  # which --save-probabilities left
        (output / f"case0{ending}").touch()
    assert run(cases[0], output, student, overwrite=True).predicted == 3
    assert not list(output.glob("*.npz")) + list(output.glob("*.pkl"))
    assert agreement(stock, output) == 1
    assert run(cases[0], output, student) == RunResult(0, 3, "torch")
    with pytest.raises(DataError, match=r"\(folds 0\) \(by the hash"):
        run(cases[0], output, student, folds=("1",))


def test_so_do_another_models_results_of_other_cases(
    exported: Path, student: Path, cases: Cases, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(cases[0] / "case0_0000.nii.gz", output, student, folds=("1",))
    before = files(output)
    with pytest.raises(DataError, match=r"of the model .*\(folds 1\) \(by the hash.*: case0\."):
        run(cases[0] / "case1_0000.nii.gz", output, student)
    assert files(output) == before
    run(cases[0] / "case1_0000.nii.gz", output, student, overwrite=True)
    (output / "case0.nii.gz").unlink()
    assert run(cases[0] / "case1_0000.nii.gz", output, student).kept == 1


@pytest.mark.parametrize("name", ["dataset.json", "plans.json"])
def test_a_dataset_or_model_keeps_its_files(student: Path, cases: Cases, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(DataError, match=rf"{name} has other content than the model's {name}.*--overwrite"):
        run(cases[0], tmp_path, student)
    assert files(tmp_path) == {name: b'{"mine": 1}'}
    run(cases[0] / "case0_0000.nii.gz", tmp_path / "case0.nii.gz", student)
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_so_does_another_models_result_in_the_file_that_is_to_be_written(
    exported: Path, student: Path, cases: Cases, stock: Path, tmp_path: Path
) -> None:
    image, output = cases[0] / "case1_0000.nii.gz", tmp_path / "result.nii.gz"
    run(image, output, exported)
    before = files(tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path} holds segmentations of the model {exported} .*: result\."):
        run(image, output, student)
    assert run(image, output, exported) == RunResult(0, 1, "onnxruntime")
    assert files(tmp_path) == before
    run(image, output, student, overwrite=True)
    assert np.array_equal(segmentation(output), segmentation(stock / "case1.nii.gz"))
    (tmp_path / RECORD).unlink()  # somebody else's
    with pytest.raises(DataError, match="of a model that is not known"):
        run(image, output, student)
    with pytest.raises(
        DataError, match=r"the new result\.nii would lie beside \S*result\.nii\.gz\. Asked for that one"
    ):
        run(image, tmp_path / "result.nii", student, overwrite=True)


def test_results_without_a_record_are_kept_if_their_plan_is_the_models(
    student: Path, cases: Cases, stock: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stock, tmp_path / "out")  # nnU-Net itself keeps no record
    assert run(cases[0], output, student).kept == 3
    plans = json.loads((output / "plans.json").read_text())
    (output / "plans.json").write_text(json.dumps(plans | {"plans_name": "Other"}))
    with pytest.raises(DataError, match=r"plans\.json beside them is Other of Dataset"):
        run(cases[0], output, student)
    (output / "plans.json").unlink()
    with pytest.raises(DataError, match="of a model that is not known"):
        run(cases[0], output, student)


def test_a_record_that_was_cut_short(tmp_path: Path) -> None:
    origin = ModelOrigin("m", "1")
    record = PredictionRecord(tmp_path)
    record.add("a", origin)
    record.path.write_bytes(record.path.read_bytes() + b'{"case": "b", "na')
    PredictionRecord(tmp_path).add("c", origin)
    kept = [InputCase(name, (), tmp_path / f"{name}.nii.gz") for name in ("a", "c")]
    for case in kept:
        case.output.touch()
    PredictionRecord(tmp_path).refuse_others(kept, origin, {})
    with pytest.raises(DataError, match=r"of the model m .*: a, c"):
        PredictionRecord(tmp_path).refuse_others(kept, ModelOrigin("n", "2"), {})


def test_importing_everything_needs_no_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nnunet_kd_runtime'): sys.modules[name] = None\n"
        "import nnunet_kd.cli; nnunet_kd.cli._register()\n"
        "import nnunet_kd.export.onnx_export, nnunet_kd.export.folder_export, nnunet_kd.inference.session\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_command_line(exported: Path, images: Path, tmp_path: Path) -> None:
    common = ("predict", "-i", str(images), "-o", str(tmp_path / "out"), "--threads", "1", "--model")
    code, output, errors = run_command(*common, str(exported))
    assert code == 0, errors
    assert "3 cases segmented with onnxruntime" in output
    assert "3/3" in errors
    assert "0 cases segmented with onnxruntime; 3 kept from before" in run_command(*common, str(exported))[1]
    code, _, errors = run_command(*common, str(tmp_path / "none"))
    assert (code, "does not exist" in errors) == (8, True), errors
