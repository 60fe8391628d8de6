"""What does not hold is refused with one line that names it, an exit code, and no output file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from nnunet_kd_runtime.arrays import open_predictor, segment
from nnunet_kd_runtime.command import main
from nnunet_kd_runtime.errors import DataError, SettingsError
from tests.deployment import write_image
from tests.runtime.exported import Pair, export, write_images
from tests.runtime.refusing import edit, images, model, pair, refused

__all__ = ["images", "model", "pair"]


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
