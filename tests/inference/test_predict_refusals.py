"""``predict`` on bad input and damaged models: a clear error and no output."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_kd.errors import DataError, MissingRequirement, ModelError, SettingsError
from nnunet_kd.nnunet.checkpoints import FINAL
from tests.deployment import ball, write_image
from tests.inference.predicting import Cases, refuse, run
from tests.models.test_checkpoint import RAN, Malicious


def test_channels_missing_or_too_many(student: Path, images: Path) -> None:
    (images / "case1_0001.nii.gz").rename(images / "case1_0002.nii.gz")
    (images / "case1_0000.nii.gz").rename(images / "case1_0001.nii.gz")
    shutil.copy(images / "case1_0001.nii.gz", images / "case1_0000.nii.gz")
    refuse(images, student, r"case1_0002\.nii\.gz is one too many\. The model takes the channels 0000 T1, 0001 CT")
    for channel in (1, 2):
        (images / f"case1_000{channel}.nii.gz").unlink()
    refuse(images, student, "case case1 has 1 channel, but the model takes 2")


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
    with pytest.raises(SettingsError, match="is a folder, so -o must be one too"):
        run(images, tmp_path / "out.nii.gz", student)


def test_an_output_that_cannot_be_written(student: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for output in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "case0.nii.gz"):
        inputs = [images] if output.suffix == "" else sorted(images.glob("case0_*"))
        with pytest.raises(
            MissingRequirement, match=rf"-o .*: {tmp_path / 'file'} is no folder that can be written to"
        ):
            run(inputs, output, student)
    assert (tmp_path / "file").read_text() == "kept"


def test_nothing_to_do_in_a_folder_that_cannot_be_written_to(
    student: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(images, tmp_path / "out", student)
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # as root, nothing is closed
    run(images, tmp_path / "out", student)
    with pytest.raises(MissingRequirement, match=r"-o .* is no folder that can be written to"):
        run(images, tmp_path / "other", student)


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


def test_weights_that_contradict_the_model_path(tmp_path: Path) -> None:
    """Told before anything is loaded, so that these need not be models."""
    best = tmp_path / "model" / "fold_1" / "checkpoint_best.pth"
    best.parent.mkdir(parents=True)
    best.touch()
    for path, options, message in (
        (
            best,
            {"checkpoint": FINAL},
            r"-chk checkpoint_final\.pth stands for checkpoint_final\.pth, and .*another checkpoint",
        ),
        (best, {"folds": ("0",)}, r"-f 0: .* is of fold 1 alone"),
        (best.parent, {"folds": ("0", "1")}, r"-f 0 1: .* is of fold 1 alone"),
        (tmp_path / "a.onnx", {"folds": ("0",)}, r"^-f: .*a\.onnx holds the weights that it was exported with"),
        (tmp_path / "a.onnx", {"checkpoint": FINAL, "folds": ("0",)}, r"^-f and -chk: .*Leave -f and -chk out"),
    ):
        chosen: dict[str, Any] = {"folds": (), **options}
        with pytest.raises(SettingsError, match=message):
            run(tmp_path, tmp_path / "out", path, **chosen)
    with pytest.raises(ModelError, match=r"plans\.json"):  # these agree; what is missing is told next
        run(tmp_path, tmp_path / "out", best, folds=("1",), checkpoint=best.name)
