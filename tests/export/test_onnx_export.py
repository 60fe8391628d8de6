"""ONNX: checked networks with a complete description, in three precisions, for every kind of nnU-Net."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_kd.errors import DataError, MissingRequirement, ModelError, SettingsError
from nnunet_kd.export import onnx_export, onnx_network
from nnunet_kd.export.comparison import LOGITS_TOLERANCE, OutputDifference
from nnunet_kd.export.onnx_export import OnnxOptions, OnnxReport, export_onnx
from nnunet_kd.inference.onnx_metadata import INPUT, OUTPUT, read_onnx_model
from nnunet_kd.models.folder import open_model
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.bench.pair import DATASET_JSON, write_untrained_teacher
from tests.conftest import make_plans
from tests.deployment import CT, stock_predictor

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
RuntimeModelError = pytest.importorskip("nnunet_kd_runtime.errors", reason="needs ./runtime").ModelError

Cases = tuple[Path, Path]


def export(source: Path, output: Path, folds: tuple[str, ...] = ("0",), **options: Any) -> OnnxReport:
    with open_model(source, folds) as model:
        return export_onnx(model, output, OnnxOptions(**options))


def run(path: Path, image: np.ndarray) -> np.ndarray:
    result: np.ndarray = onnxruntime.InferenceSession(str(path)).run([OUTPUT], {INPUT: image})[0]
    return result


def check_operators(path: Path) -> None:
    """Only operators that TensorRT's support matrix lists, in definitions of set 16 or older, statistics' weights stored."""
    graph = onnx.load(str(path)).graph
    known = {"Conv", "ConvTranspose", "InstanceNormalization", "LeakyRelu", "Concat", "Add", "AveragePool"}
    assert {node.op_type for node in graph.node} <= known
    assert max(onnx.defs.get_schema(node.op_type, 18).since_version for node in graph.node) <= 16
    stored = {tensor.name for tensor in graph.initializer}
    assert all(set(node.input[1:]) <= stored for node in graph.node if node.op_type == "InstanceNormalization")


def test_network_and_description(student: Path, cases: Cases, tmp_path: Path) -> None:
    output = tmp_path / "student.onnx"
    report = export(student, output, images=cases[0])
    assert set(report.differences) == {"random", "real"}
    assert 0 < report.differences["real"].largest <= LOGITS_TOLERANCE
    assert "largest difference" in report.lines()[0]
    network = stock_predictor(student).network.eval()
    for batch in (1, 3):
        image = torch.randn(batch, 2, 16, 12, 16)
        with torch.inference_mode():
            expected = network(image).numpy()
        assert np.abs(run(output, image.numpy()) - expected).max() <= LOGITS_TOLERANCE
    model = onnx.load(str(output))
    assert [(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""] == [("", 18)]
    assert "InstanceNormalization" in {node.op_type for node in model.graph.node}
    check_operators(output)
    assert str(Path(torch.__file__).parents[1]).encode() not in output.read_bytes()  # no folders of this machine
    description = read_onnx_model(output).description
    for key, value in {
        "channels": {"0": "T1", "1": "CT"}, "input_channels": 2, "output_channels": 3, "spacing": [1.0, 1.0, 1.0],
        "transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1], "patch_size": [16, 12, 16],
        "mirror_axes": [0, 1, 2], "labels": {"background": 0, "ball": 1, "core": 2}, "regions_class_order": None,
        "configuration": "3d_fullres", "postprocessing": None, "activation": "softmax", "previous_stage": None,
    }.items():  # fmt: skip
        assert description[key] == value
    assert description["normalization"][1] == {"scheme": "CTNormalization", "use_mask": False, "intensities": CT}
    assert description["onnx"]["sha256"] == sha256(output)
    assert str(student.parents[2]) not in output.with_suffix(".json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.onnx"]
    with pytest.raises(ModelError, match="exists already"):
        export(student, output)


def test_several_folds_are_averaged_inside(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "true")  # as trainings like it
    report = export(student, tmp_path / "both.onnx", folds=())
    assert report.folds == ("0", "1")
    image = torch.randn(1, 2, 16, 12, 16)
    monkeypatch.delenv("nnUNet_compile")
    with torch.inference_mode():
        expected = torch.stack([stock_predictor(student, (fold,)).network.eval()(image) for fold in (0, 1)]).mean(0)
    assert np.abs(run(tmp_path / "both.onnx", image.numpy()) - expected.numpy()).max() <= LOGITS_TOLERANCE


@pytest.mark.parametrize("kind", ["residual", "2D", "anisotropic regions"])
def test_other_networks(folders: Path, tmp_path: Path, kind: str) -> None:
    variants: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "residual": ({"architecture": "ResidualEncoderUNet"}, {}),
        "2D": ({"dimensions": 2}, {}),
        "anisotropic regions": (
            {"patch": (6, 20, 16), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))},
            {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]},
        ),
    }
    arguments, dataset = variants[kind]
    plans = make_plans(**arguments)
    (configuration,) = plans["configurations"]
    dataset_json = {**DATASET_JSON, **dataset}
    if kind == "2D":
        dataset_json["modality"] = dataset_json.pop("channel_names")  # as the first releases of nnU-Net v2 called them
    teacher = write_untrained_teacher(plans, configuration, dataset_json)
    if kind == "residual" and torch.__version__.startswith("2.6."):
        with pytest.raises(
            ModelError, match="Update PyTorch, whose exporter wrote it"
        ):  # a bias of another convolution
            export(teacher, tmp_path / "out.onnx")
        return
    report = export(teacher, tmp_path / "out.onnx")
    assert report.differences["random"].largest <= LOGITS_TOLERANCE
    check_operators(report.path)
    description = json.loads((tmp_path / "out.json").read_text())
    assert description["patch_size"] == plans["configurations"][configuration]["patch_size"]
    assert description["channels"] == {"0": "MRI"}
    if "regions" in kind:
        assert (description["activation"], description["output_channels"]) == ("sigmoid", 2)
        assert description["regions_class_order"] == [1, 2]


def test_half_precision(student: Path, cases: Cases, tmp_path: Path) -> None:
    full = export(student, tmp_path / "full.onnx")
    half = export(student, tmp_path / "half.onnx", precision="float16", images=cases[0])
    weights = sum(weight.numel() for weight in stock_predictor(student).network.parameters())
    assert full.path.stat().st_size - half.path.stat().st_size > 1.8 * weights
    for difference in half.differences.values():
        assert LOGITS_TOLERANCE < difference.largest <= 0.01 * difference.scale
    session = onnxruntime.InferenceSession(str(half.path))
    assert (session.get_inputs()[0].type, session.get_outputs()[0].type) == ("tensor(float)", "tensor(float)")
    assert read_onnx_model(half.path).description["onnx"]["precision"] == "float16"


@pytest.mark.slow
def test_eight_bit_and_its_cost_in_dice(student: Path, cases: Cases, tmp_path: Path) -> None:
    report = export(student, tmp_path / "int8.onnx", precision="int8", images=cases[0], references=cases[1])
    types = {node.op_type for node in onnx.load(str(report.path)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types
    assert report.dice_cases == 3
    assert set(report.dice["torch"]) == {"1", "2"}
    assert report.dice["torch"]["1"] > 0.7
    assert report.dice["torch"] != report.dice["exported"]
    assert any(line.startswith("Dice of 1: 0.") for line in report.lines())
    with pytest.raises(DataError, match="no reference segmentation of any image"):
        export(student, tmp_path / "b.onnx", precision="int8", images=cases[0], references=tmp_path)


def test_a_network_that_differs_is_not_kept(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = onnx_export.write_network

    def write_another(network: torch.nn.Module, *arguments: Any) -> None:
        another = copy.deepcopy(network)
        with torch.no_grad():
            next(reversed(list(another.parameters()))).add_(0.01)
        write(another, *arguments)

    monkeypatch.setattr(onnx_export, "write_network", write_another)
    with pytest.raises(ModelError, match="differs from PyTorch's beyond what float32 allows"):
        export(student, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_not_run_is_not_kept(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeModelError("ONNX Runtime cannot run network.onnx: Compute Conv : bias must be a 1D tensor")

    monkeypatch.setattr(onnx_export, "compare_logits", broken)
    with pytest.raises(
        ModelError, match=r"ONNX Runtime cannot use what PyTorch .* wrote of this network\. Update PyTorch"
    ):
        export(student, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("largest", "precision", "fine"),
    [
        (9e-4, "float32", True), (1.1e-3, "float32", False), (float("inf"), "int8", False), (3.0, "int8", True),
        (0.4, "float16", True), (0.6, "float16", False),
    ],
)  # fmt: skip
def test_tolerances(largest: float, precision: str, fine: bool) -> None:
    assert OutputDifference(1, largest, 50.0, 1.0).acceptable(precision) is fine


def test_postprocessing_and_weights_limits(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shutil.copytree(student, tmp_path / student.name)
    (model / "crossval_results_folds_0").mkdir()
    (model / "crossval_results_folds_0" / "postprocessing.json").write_text('{"input_folder": "x"}')
    export(model, tmp_path / "a.onnx")
    assert json.loads((tmp_path / "a.json").read_text())["postprocessing"] == {"input_folder": "x"}
    (model / "crossval_results_folds_0").rename(model / "crossval_results_folds_1_0")
    for folds, expected in (((), True), (("1", "0"), True), (("1",), False)):
        with open_model(model, folds) as opened:
            assert (opened.cross_validation() is not None) == expected
    with pytest.raises(ModelError, match="holds no moving average"):
        export(student, tmp_path / "b.onnx", weights="ema")
    with pytest.raises(SettingsError, match=r"must end in \.onnx"):
        export(student, tmp_path / "b")
    monkeypatch.setattr(onnx_network, "LARGEST_BYTES", 100)
    with pytest.raises(ModelError, match="Export one fold"):
        export(student, tmp_path / "b.onnx")


def test_missing_extra_is_named(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingRequirement, match=r"pip install 'nnunet-kd\[onnx\]'"):
        export(student, tmp_path / "out.onnx")
