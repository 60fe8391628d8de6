"""``predict``: stock nnU-Net's segmentation from every backend, in whole files, resumable; and clear errors for bad input."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_kd.errors import DataError, MissingRequirement, ModelError, SettingsError
from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.inference import predictor as predictor_module
from nnunet_kd.inference.cases import InputCase, find_cases
from nnunet_kd.inference.record import RECORD, ModelOrigin, PredictionRecord
from nnunet_kd.inference.session import RunOptions, RunResult, predict
from nnunet_kd.models.folder import open_model
from tests.deployment import ball, run_command, segmentation, stock_prediction, write_image
from tests.models.test_checkpoint import RAN, Malicious

Cases = tuple[Path, Path]


def run(inputs: Path | list[Path], output: Path, model: Path, **options: Any) -> RunResult:
    chosen = RunOptions(**{"threads": 1, "folds": ("0",), **options})
    return predict([inputs] if isinstance(inputs, Path) else inputs, output, model, chosen)


def agreement(first: Path, second: Path) -> float:
    """Share of equal voxels over all segmentations of ``first``."""
    pairs = [(segmentation(path), segmentation(second / path.name)) for path in sorted(first.glob("*.nii.gz"))]
    assert len(pairs) == 3
    return float(np.mean(np.concatenate([(a == b).ravel() for a, b in pairs])))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


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


def test_several_folds_step_and_no_mirroring_are_nnunets(student: Path, cases: Cases, tmp_path: Path) -> None:
    both = stock_prediction(student, cases[0], tmp_path / "both", (0, 1))
    run(cases[0], tmp_path / "ours", student, folds=())
    assert agreement(both, tmp_path / "ours") == 1
    run(cases[0], tmp_path / "plain", student, mirroring=False, step=1.0)
    assert agreement(both, tmp_path / "plain") < 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_runtimes_give_the_same_segmentation(
    exported: Path, cases: Cases, stock: Path, tmp_path: Path, backend: str
) -> None:
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
    with pytest.raises(DataError, match=r"result\.nrrd must be a folder, or a file that ends in \.nii\.gz or \.nii"):
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
    assert run(cases[0], output, student, overwrite=True).predicted == 3
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


# bad input: a clear error and no output --------------------------------------------------------------------------------


@pytest.fixture
def images(cases: Cases, tmp_path: Path) -> Path:
    """A copy of the images, to be damaged."""
    return shutil.copytree(cases[0], tmp_path / "images")


def refuse(images: Path, model: Path, message: str, error: type[Exception] = DataError, **options: Any) -> None:
    output = images.parent / "refused"
    with pytest.raises(error, match=message):
        run(images, output, model, **options)
    assert [name for name in files(output) if name.endswith(".nii.gz")] == []


def test_channels_missing_or_too_many(student: Path, images: Path) -> None:
    (images / "case1_0001.nii.gz").rename(images / "case1_0002.nii.gz")
    (images / "case1_0000.nii.gz").rename(images / "case1_0001.nii.gz")
    shutil.copy(images / "case1_0001.nii.gz", images / "case1_0000.nii.gz")
    refuse(images, student, r"case1_0002\.nii\.gz is one too many\. The model takes the channels 0000 T1, 0001 CT")
    for channel in (1, 2):
        (images / f"case1_000{channel}.nii.gz").unlink()
    refuse(images, student, "case case1 has 1 channels, but the model takes 2")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 2), r"p_0001\.nii\.gz \(CT\) is missing; p_0002\.nii\.gz is one too many"),
        ((1, 2), r"p_0000\.nii\.gz \(T1\) is missing; p_0002\.nii\.gz is one too many"),
        ((1,), r"p_0000\.nii\.gz \(T1\) is missing"),
    ],
)
def test_channel_numbers_with_a_gap(
    student: Path, cases: Cases, tmp_path: Path, numbers: tuple[int, ...], message: str
) -> None:
    folder = tmp_path / "gap"
    folder.mkdir()
    for channel, number in enumerate(numbers):
        shutil.copy(cases[0] / f"case0_{channel:04d}.nii.gz", folder / f"p_{number:04d}.nii.gz")
    refuse(folder, student, message)
    files = sorted(folder.iterdir())
    with pytest.raises(DataError, match=message):
        run(files, tmp_path / "files", student)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((20, 18, 21), (1.0, 1.0, 1.0), r"case0_0001\.nii\.gz lies on another grid.*shape \(21, 18, 20\) instead of"),
        ((20, 18, 22), (1.0, 1.0, 1.1), "spacing"),
    ],
)
def test_channels_of_another_geometry(
    student: Path, images: Path, shape: tuple[int, ...], spacing: tuple[float, ...], message: str
) -> None:
    write_image(ball(0, shape)[0][1], images / "case0_0001.nii.gz", spacing)
    refuse(images, student, message)


def test_damaged_images(student: Path, images: Path) -> None:
    path = images / "case0_0001.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    refuse(images, student, r"case0_0001\.nii\.gz is not whole: its gzip data end early")
    path.write_text("no image")
    refuse(images, student, r"case0_0001\.nii\.gz cannot be read: Unable to determine ImageIO reader")


def test_wrong_folders_and_endings(student: Path, images: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(empty, student, "holds no images named CASE_0000.nii.gz")
    refuse(tmp_path / "nowhere", student, "does not exist")
    (tmp_path / "a.png").write_bytes(b"")
    refuse(tmp_path / "a.png", student, r"does not end in \.nii\.gz")
    with pytest.raises(DataError, match="is a folder, so -o must be one too"):
        run(images, tmp_path / "out.nii.gz", student)


def test_damaged_and_foreign_models(student: Path, exported: Path, images: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        (tmp_path / name).mkdir()
        for path in (exported, exported.with_suffix(".json")):
            shutil.copy(path, tmp_path / name / path.name)
        return tmp_path / name / exported.name

    truncated = copy("truncated")
    truncated.write_bytes(truncated.read_bytes()[:-100])
    refuse(images, truncated, "do not belong together.*must be of one export", ModelError)

    def edit(name: str, **changes: Any) -> Path:
        path = copy(name)
        description = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps({**description, **changes}))
        return path

    onnx = json.loads(exported.with_suffix(".json").read_text())["onnx"]
    refuse(images, edit("foreign", onnx={**onnx, "sha256": "0" * 64}), "do not belong together", ModelError)
    for backend in ("onnxruntime", "openvino"):
        if backend == "openvino":
            pytest.importorskip("openvino", reason="needs the extra openvino")
        channels = edit(f"channels_{backend}", input_channels=4)
        refuse(images, channels, r"its JSON says \[4, 16, 12, 16\]", ModelError, backend=backend)
        garbage = edit(f"garbage_{backend}", onnx={**onnx, "sha256": GARBAGE_SHA256})
        garbage.write_bytes(GARBAGE)
        refuse(images, garbage, "cannot load", ModelError, backend=backend)
    refuse(images, edit("newer", format_version=99), "format version 99, this nnunet-kd reads 1", ModelError)
    refuse(images, edit("other", format="x"), "does not describe an exported network", ModelError)
    alone = copy("alone")
    alone.with_suffix(".json").unlink()
    refuse(images, alone, "description of the ONNX network is missing", ModelError)
    alone.with_suffix(".json").write_text('{"format":')
    refuse(images, alone, "not valid JSON", ModelError)
    refuse(images, tmp_path / "none.onnx", "there is no ONNX file", ModelError)
    checkpoint = shutil.copytree(student, tmp_path / student.name) / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:9999])
    refuse(images, tmp_path / student.name, "its 9999 bytes are no whole zip archive", ModelError)


def test_a_model_that_is_code_is_not_run_unless_trusted(student: Path, images: Path, tmp_path: Path) -> None:
    RAN.clear()
    path = shutil.copytree(student, tmp_path / student.name) / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["surprise"] = Malicious()
    torch.save(checkpoint, path)
    refuse(images, tmp_path / student.name, "holds more than data", ModelError)
    assert RAN == []
    assert run(images, tmp_path / "out", tmp_path / student.name, trusted=True).predicted == 3
    assert RAN


GARBAGE = b"not a network at all"
GARBAGE_SHA256 = hashlib.sha256(GARBAGE).hexdigest()


def test_backends_that_do_not_fit(student: Path, exported: Path, images: Path) -> None:
    refuse(images, student, r"needs an ONNX file\. Write one with: nnunet-kd export", SettingsError, backend="openvino")
    refuse(images, exported, "needs onnxruntime or openvino", SettingsError, backend="torch")
    refuse(images, exported, "runs on --device cpu", SettingsError, backend="openvino", device="cuda")
    refuse(images, exported, "no support for --device mps", MissingRequirement, device="mps")


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [
        ("onnxruntime", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("onnxruntime", "nnunet_kd_runtime.backends", "onnx"),
    ],
)
def test_missing_extras_are_named(
    exported: Path, images: Path, monkeypatch: pytest.MonkeyPatch, backend: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"pip install 'nnunet-kd\[{extra}\]'"
    refuse(images, exported, message, MissingRequirement, backend=backend)


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
    assert "0 cases segmented with onnxruntime; 3 were there before" in run_command(*common, str(exported))[1]
    code, _, errors = run_command(*common, str(tmp_path / "none"))
    assert (code, "does not exist" in errors) == (8, True), errors
