"""What does not hold is refused with one line that names it, an exit code, and no output file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from nnunet_kd_runtime.arrays import open_predictor, segment
from nnunet_kd_runtime.command import main
from nnunet_kd_runtime.description import read_model
from nnunet_kd_runtime.errors import DataError, ModelError, SettingsError
from tests.deployment import write_image
from tests.runtime.exported import Pair, export, write_images


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model with two channels."""
    return export(tmp_path_factory.mktemp("model"), channels=2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 2)


@pytest.fixture
def model(pair: Pair, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    (tmp_path / "copy").mkdir()
    for path in (pair.onnx, pair.onnx.with_suffix(".json")):
        shutil.copy(path, tmp_path / "copy")
    return tmp_path / "copy" / pair.onnx.name


def refused(
    capsys: pytest.CaptureFixture[str], code: int, words: str, model: Path, *arguments: str | Path, output: Path
) -> None:
    """One line with these words, this exit code, and no segmentation."""
    assert main([str(model), *map(str, arguments), "-o", str(output), "--threads", "1"]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert words in errors[0], errors[0]
    assert not output.exists() or list(output.iterdir()) == []


def edit(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = model.with_suffix(".json")
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another model's": (lambda d: d["onnx"].update(sha256="0" * 64), "do not belong together"),
    "incomplete": (lambda d: d.pop("patch_size"), "has no 'patch_size'"),
    "no export": (lambda d: d.update(format="x"), "does not describe an exported network"),
    "newer": (lambda d: d.update(format_version=9), "format version 9"),
    "channels": (lambda d: d.update(input_channels=5), "they are of different models"),
    "heads": (lambda d: d.update(output_channels=7), "7 output channels"),
    "reader": (lambda d: d.update(image_reader_writer="MyReader"), "reader MyReader"),
    "preprocessor": (lambda d: d.update(preprocessor="MyPreprocessor"), "preprocessor MyPreprocessor"),
    "scheme": (lambda d: d["normalization"][0].update(scheme="MyScheme"), "normalisation MyScheme"),
    "function": (lambda d: d["resampling"].update(resampling_fn_seg="my_function"), "my_function"),
    "label manager": (lambda d: d["plans"].update(label_manager="MyLabels"), "label manager MyLabels"),
    "damaged": (lambda d: d.update(normalization=3), "something else than an export writes"),
}
RESAMPLING = "resampling_fn_data_kwargs"
POSTPROCESSING = "remove_all_but_largest_component_from_segmentation"
WRONG_VALUES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "plans": (lambda d: d.update(plans=None), "plans is None"),
    "no plans": (lambda d: d.pop("plans"), "'plans'"),
    "configuration": (lambda d: (d.pop("preprocessor"), d.update(configuration=[])), "configuration is []"),
    "circle": (
        lambda d: (
            d.pop("preprocessor"),
            d.update(configuration="a"),
            d["plans"].update(configurations={"a": {"inherits_from": "a"}}),
        ),
        "'preprocessor_name'",
    ),
    "spacing of zero": (lambda d: d.update(spacing=[0, 1, 1]), "spacing is [0, 1, 1]"),
    "negative spacing": (lambda d: d.update(spacing=[1, -1, 1]), "spacing is [1, -1, 1]"),
    "infinite spacing": (lambda d: d.update(spacing=[1, 1, float("inf")]), "spacing is [1, 1, inf]"),
    "spacing in words": (lambda d: d.update(spacing=["x", 1, 1]), "spacing is ['x', 1, 1]"),
    "two spacings": (lambda d: d.update(spacing=[1, 1]), "spacing is [1, 1]"),
    "patch": (lambda d: d.update(patch_size=[16, 0, 16]), "patch_size is [16, 0, 16]"),
    "axis of many": (lambda d: d.update(transpose_forward=[0, 1, 5]), "transpose_forward is [0, 1, 5]"),
    "axis twice": (lambda d: d.update(transpose_forward=[0, 0, 1]), "transpose_forward is [0, 0, 1]"),
    "two axes": (lambda d: d.update(transpose_forward=[0, 1]), "transpose_forward is [0, 1]"),
    "no inverse": (
        lambda d: d.update(transpose_forward=[1, 2, 0], transpose_backward=[1, 2, 0]), "transpose_backward is [1, 2, 0]"
    ),
    "mirror": (lambda d: d.update(mirror_axes=[7]), "mirror_axes is [7]"),
    "mirror below": (lambda d: d.update(mirror_axes=[-1]), "mirror_axes is [-1]"),
    "mirror twice": (lambda d: d.update(mirror_axes=[1, 1]), "mirror_axes is [1, 1]"),
    "order in words": (lambda d: d["resampling"][RESAMPLING].update(order="x"), f"order of {RESAMPLING} is 'x'"),
    "order of 99": (lambda d: d["resampling"][RESAMPLING].update(order=99), f"order of {RESAMPLING} is 99"),
    "arguments": (lambda d: d["resampling"].update({RESAMPLING: [1]}), f"{RESAMPLING} is [1]"),
    "force": (lambda d: d["resampling"][RESAMPLING].update(force_separate_z="x"), "force_separate_z of"),
    "scheme": (lambda d: d["normalization"][0].update(scheme=[]), "scheme is []"),
    "statistics": (
        lambda d: d["normalization"][0].update(
            scheme="CTNormalization",
            intensities={"mean": "x", "std": 1, "percentile_00_5": 0, "percentile_99_5": 1},
        ),
        "mean of the intensities is 'x'",
    ),
    "labels": (lambda d: d["dataset_json"].update(labels=None), "labels is None"),
    "label": (lambda d: d["dataset_json"]["labels"].update(ball="x"), "the label 'ball' of dataset_json is 'x'"),
    "background": (lambda d: d["dataset_json"]["labels"].pop("background"), "with the background 0"),
    "regions": (lambda d: d["dataset_json"]["labels"].update(ball=[1, 2]), "regions_class_order of dataset_json is None"),
    "hash": (lambda d: d["onnx"].pop("sha256"), "'sha256'"),
    "ending": (lambda d: d.update(file_ending=5), "file_ending is 5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_VALUES)
def test_values_of_a_description(kind: str, model: Path) -> None:
    change, words = WRONG_VALUES[kind]
    edit(model, change)
    with pytest.raises(ModelError) as told:
        read_model(model)
    assert str(told.value).startswith(str(model.with_suffix(".json")))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": 1}, "'postprocessing_fns'"),
        (["x"], "not as nnU-Net writes it"),
        ({"postprocessing_fns": [POSTPROCESSING], "postprocessing_kwargs": []}, "not as nnU-Net writes it"),
        (
            {"postprocessing_fns": [POSTPROCESSING], "postprocessing_kwargs": [{"labels_or_regions": ["x"]}]},
            "a label is 'x'",
        ),
        ({"postprocessing_fns": ["mine"], "postprocessing_kwargs": [{}]}, "names mine"),
    ],
)
def test_postprocessing(
    content: Any, words: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(model, lambda d: d.update(postprocessing=content))
    refused(capsys, 8, words, model, images, "--postprocessing", output=tmp_path / "out")


@pytest.mark.parametrize("kind", CHANGES)
def test_descriptions(kind: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = CHANGES[kind]
    edit(model, change)
    refused(capsys, 8, words, model, images, output=tmp_path / "out")


def test_models(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(words: str) -> None:
        refused(capsys, 8, words, model, images, output=tmp_path / "out")

    content = model.read_bytes()
    model.write_bytes(content[:-50])
    check("do not belong together")
    import hashlib

    edit(model, lambda d: d["onnx"].update(sha256=hashlib.sha256(content[:-50]).hexdigest()))
    check("ONNX Runtime cannot load")
    model.with_suffix(".json").write_text("{")
    check("not valid JSON")
    model.with_suffix(".json").unlink()
    check("is missing")
    model.with_suffix(".json").mkdir()
    check(".json cannot be read (Is a directory)")
    model.with_suffix(".json").rmdir()
    model.unlink()
    check("there is no ONNX file")


def test_channels(pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = images / "case0_0001.nii.gz"
    shape = nibabel.load(second).shape[::-1]

    def check(words: str) -> None:
        refused(capsys, 7, words, pair.onnx, images, output=tmp_path / "out")

    shutil.copy(second, images / "case0_0002.nii.gz")
    check("case0_0002.nii.gz, but the model takes 2 channels (C0, C1)")
    second.unlink()
    check("case0 lacks channel 1 (C1): case0_0001.nii.gz")
    (images / "case0_0002.nii.gz").unlink()
    values = np.ones(shape, np.float32)
    write_image(values, second, (1.0, 1.0, 1.5))
    check("case0_0001.nii.gz lies on another grid than case0_0000.nii.gz: spacing")
    write_image(values[1:], second)
    check("lies on another grid than case0_0000.nii.gz: shape")
    values[3, 3, 3] = np.nan
    write_image(values, second)
    check("case case0: channel C1 has 1 voxel without a number")
    second.write_bytes(second.read_bytes()[:-20])
    check("case0_0001.nii.gz cannot be read to its end")


def test_inputs(pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dicom = tmp_path / "series"
    dicom.mkdir()
    (dicom / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(9))
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "._case0_0000.nii.gz").write_bytes(b"macOS")
    for given, words in (
        ([tmp_path / "nowhere"], "does not exist"),
        ([empty], "It is empty"),
        ([dicom], "dcm2niix"),
        ([dicom / "IM0001"], "dcm2niix"),
        ([picture], "does not end in .nii.gz"),
    ):
        refused(capsys, 7, words, pair.onnx, *given, output=tmp_path / "out")
    other = shutil.copytree(images, tmp_path / "other")
    refused(capsys, 7, "several inputs are named case0", pair.onnx, images, other, output=tmp_path / "out")


def test_options(pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    refused(capsys, 3, "has no postprocessing", pair.onnx, images, "--postprocessing", output=output)
    refused(capsys, 3, "this model is none", pair.onnx, images, "--previous-stage", images, output=output)
    refused(capsys, 6, "--memory allows 107374. Raise", pair.onnx, images, "--memory", "0.0001", output=output)
    refused(capsys, 6, "no support for --device cuda", pair.onnx, images, "--device", "cuda", output=output)
    for arguments, words in (
        (["--step", "0"], "must lie between 0.05 and 1, got 0"),
        (["--step", "x"], "must be a number, got x"),
        (["--threads", "0"], "must be a whole number of at least 1, got 0"),
        (["--threads", "x"], "must be a whole number of at least 1, got x"),
        (["--memory", "-1"], "must be a positive number of GiB"),
        (["--memory", "inf"], "must be a positive number of GiB, got inf"),
        (["--memory", "nan"], "must be a positive number of GiB, got nan"),
        (["--backend", "x"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(pair.onnx), str(images), "-o", str(output), *arguments])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


def test_outputs(pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("single.nii", "single.mha", "single.gz"):
        refused(capsys, 3, "but this model's segmentations end in .nii.gz", pair.onnx, images, output=tmp_path / name)
        assert not (tmp_path / name).exists()
    (tmp_path / "notes").write_text("kept")
    assert main([str(pair.onnx), str(images), "-o", str(tmp_path / "notes")]) == 3
    assert "is a file that is there already" in capsys.readouterr().err


def test_memory_that_nobody_limited(
    pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_kd_runtime.memory.available", lambda: 1000)
    refused(capsys, 6, "but 1000 are free. Close other programs", pair.onnx, images, output=tmp_path / "out")


@pytest.mark.parametrize("name", ["1", "inf", "voxel"])
def test_a_case_is_named_whatever_its_name(
    name: str, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.ones((4, 5, 6), np.float32)
    write_image(values, tmp_path / f"{name}_0000.nii.gz")
    values[1, 1, 1] = np.nan
    write_image(values, tmp_path / f"{name}_0001.nii.gz")
    first = tmp_path / f"{name}_0000.nii.gz"
    refused(capsys, 7, f"case {name}: channel C1 has 1 voxel", pair.onnx, first, output=tmp_path / "out")


def test_arrays_and_options_of_the_python_interface(pair: Pair) -> None:
    predictor = open_predictor(pair.onnx, threads=1)
    image = np.ones((2, 4, 5, 6))
    for given, spacing, words in (
        (image.astype(str), (1, 1, 1), "the image must hold real numbers, got <U"),
        (image.astype(complex), (1, 1, 1), "the image must hold real numbers, got complex128"),
        (image.astype(object), (1, 1, 1), "got object"),
        ([[1, 2], [3]], (1, 1, 1), "the image is no array"),
        (image * 1e300, (1, 1, 1), "without a number"),
        (image, ("a", 1, 1), "the spacing must hold real numbers"),
        (image, (None, 1, 1), "the spacing must hold real numbers"),
        (image, 3.0, "three numbers"),
        (image, (1, 1), "three spacings"),
    ):
        with pytest.raises(DataError, match=words):
            segment(predictor, given, spacing)  # type: ignore[arg-type]
    for option, value in (
        ("backend", "x"), ("device", "x"), ("threads", 0), ("step", 0), ("step", 5), ("step", np.nan), ("step", "x"),
        ("memory", -1), ("memory", np.inf), ("memory", np.nan), ("memory", "x"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=option if option not in ("backend",) else "back end"):
            open_predictor(pair.onnx, **{option: value})  # type: ignore[arg-type]


def test_a_cascade_needs_its_first_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cascade = export(tmp_path / "model", previous_stage="3d_lowres")
    images = write_images(tmp_path / "images")
    refused(capsys, 3, "segment with 3d_lowres first", cascade.onnx, images, output=tmp_path / "out")
    refused(
        capsys, 7, "has no segmentation case0.nii.gz", cascade.onnx, images, "--previous-stage", images,
        output=tmp_path / "out",
    )  # fmt: skip


def test_a_full_disk_leaves_nothing(
    pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import nnunet_kd_runtime.itk_nifti

    def write(labels: np.ndarray, path: Path, properties: dict[str, Any]) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nnunet_kd_runtime.itk_nifti, "write", write)
    output = tmp_path / "out"
    assert main([str(pair.onnx), str(images), "-o", str(output), "--threads", "1"]) == 6
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert list(output.iterdir()) == []


def test_what_may_not_be_read_is_told(
    pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("nnunet_kd_runtime.cases._refuse_dicom", refuse)
    refused(capsys, 6, "Permission denied", pair.onnx, images, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("reason", "code", "words"),
    [("Failed to allocate memory for 9 bytes", 6, "does not fit into memory"), ("bad node", 8, "cannot run")],
)
def test_a_network_that_breaks_off(
    reason: str, code: int, words: str, pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from onnxruntime import InferenceSession

    def fail(*_: Any) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr(InferenceSession, "run", fail)
    assert main([str(pair.onnx), str(images), "-o", str(tmp_path / "out"), "--threads", "1"]) == code
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_another_models_segmentations_are_neither_kept_nor_replaced_unasked(
    pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = export(tmp_path / "other", channels=2, patch_size=[10, 8, 8]).onnx
    output, file = tmp_path / "out", tmp_path / "files" / "one.nii.gz"
    write_image(np.zeros((3, 4, 5), np.float32), tmp_path / "files" / "else.nii.gz")

    def run(model: Path, output: Path, *more: str) -> tuple[int, str]:
        code = main([str(model), str(images), "-o", str(output), "--threads", "1", *more])
        told = capsys.readouterr()
        return code, told.out + told.err

    for place in (output, file):
        assert run(pair.onnx, place)[0] == 0
        written = {path: path.read_bytes() for path in (output if place == output else file.parent).iterdir()}
        code, told = run(other, place)
        assert code == 7
        assert f"holds segmentations of the model {pair.onnx} (by the hash in" in told
        assert run(pair.onnx, place)[1].startswith("0 cases segmented with onnxruntime; 1 kept from")
        assert {path: path.read_bytes() for path in written} == written
        assert run(other, place, "--overwrite")[0] == 0
    assert {path.name for path in file.parent.iterdir()} == {"one.nii.gz", "else.nii.gz", "nnunet_kd_predictions.jsonl"}
    (images / "case0_0000.nii.gz").rename(images / "case9_0000.nii.gz")
    (images / "case0_0001.nii.gz").rename(images / "case9_0001.nii.gz")
    assert "of the model" in run(pair.onnx, output)[1]  # of other cases
    (output / "nnunet_kd_predictions.jsonl").unlink()
    (output / "plans.json").write_text("{}")
    assert "plans.json has other content than the model's plans.json" in run(pair.onnx, output)[1]
    assert (output / "plans.json").read_text() == "{}"


def test_an_image_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = export(tmp_path / "model").onnx
    image = write_images(tmp_path / "images") / "case0_0000.nii.gz"
    scan = image.rename(image.with_name("scan.nii.gz"))
    content = scan.read_bytes()
    for place in (scan, scan.parent):
        assert main([str(model), str(scan), "-o", str(place), "--overwrite"]) == 7
        assert "would be written over the image" in capsys.readouterr().err
    assert scan.read_bytes() == content


def test_success_is_told(pair: Pair, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main([str(pair.onnx), str(images), "-o", str(output), "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert "1 case segmented with onnxruntime" in told.out
    assert re.search(r"case0: 0 of 1 cases?, \d+ %, left \d:\d\d:\d\d", told.err)  # how long is for the machine to say
    assert main([str(pair.onnx), str(images), "-o", str(output)]) == 0
    assert "0 cases segmented with onnxruntime; 1 kept from before" in capsys.readouterr().out


REFUSED_AT_EXPORT = {
    "reader": ({"image_reader_writer": "MyReader"}, "reader MyReader"),
    "preprocessor": ({"preprocessor_name": "MyPreprocessor"}, "preprocessor MyPreprocessor"),
    "scheme": ({"normalization_schemes": ["MyScheme"]}, "normalisation MyScheme"),
    "function": ({"resampling_fn_probabilities": "my_function"}, "my_function"),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("kind", REFUSED_AT_EXPORT)
def test_export_refuses_before_it_writes(kind: str, tmp_path: Path) -> None:
    from nnunet_kd.errors import ModelError
    from nnunet_kd.export.onnx_export import refuse_unknown_surroundings
    from nnunet_kd.models.folder import ModelFolder
    from tests.runtime.models import dataset, plans

    changes, words = REFUSED_AT_EXPORT[kind]
    plan, name = plans(**changes)
    (tmp_path / "plans.json").write_text(json.dumps(plan))
    (tmp_path / "dataset.json").write_text(json.dumps(dataset()))
    model = ModelFolder(tmp_path, ("0",), "checkpoint_final.pth")
    checkpoint = {"init_args": {"configuration": name}}
    if words is None:
        refuse_unknown_surroundings(model, checkpoint)
        return
    with pytest.raises(ModelError, match=words):
        refuse_unknown_surroundings(model, checkpoint)
