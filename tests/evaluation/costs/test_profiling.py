"""Counts against closed forms and real runs; latencies and memory for their order, not their size."""

from __future__ import annotations

import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_kd.errors import DataError, MissingRequirement, ModelError, PlanError, SettingsError
from nnunet_kd.evaluation.costs.networks import MeasuredNetwork, read_network
from nnunet_kd.evaluation.costs.profiling import (
    ProfileOptions,
    count_flops,
    count_windows,
    mirrored,
    profile_models,
)
from nnunet_kd.evaluation.costs.tables import profile_table, read_profiles, write_profiles
from nnunet_kd.evaluation.tables import TIMES
from nnunet_kd.models.folder import new_predictor
from tests.evaluation.helpers import DATASET_JSON, plans, write_model


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")


def test_flops_of_a_convolution_are_two_per_multiply_add(tmp_path):
    network = nn.Conv3d(3, 5, 3, padding=1)
    source = MeasuredNetwork(tmp_path, network, 0, 3, (8, 10, 12), None, (), None, None)
    assert count_flops(source) == 2 * (8 * 10 * 12) * 5 * 3 * 27
    assert next(network.parameters()).device.type == "cpu"


def test_flops_on_the_meta_device_are_those_of_a_real_run(model):
    source = read_network(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        source.network(torch.rand(1, 1, *source.patch_size))
    assert count_flops(source) == counter.get_total_flops() > 0


def test_deep_supervision_costs_no_flops_in_a_profile(tmp_path):
    source = read_network(write_model(tmp_path / "m", plan=plans(features=(4, 8, 16), patch=(8, 16, 16))))
    output = source.network(torch.rand(1, 1, 8, 16, 16))
    assert isinstance(output, torch.Tensor)


@pytest.mark.parametrize("volume", [(8, 16, 16), (10, 20, 30), (3, 40, 17)])
def test_windows_are_those_that_nnunet_takes(model, volume):
    source = read_network(model)
    calls = []
    source.network.register_forward_hook(lambda *_: calls.append(1))
    source.predictor.use_mirroring = False
    source.predictor.predict_sliding_window_return_logits(torch.rand(1, *volume))
    assert count_windows(volume, source.patch_size) == len(calls)
    calls.clear()
    source.predictor.use_mirroring = True
    source.predictor.predict_sliding_window_return_logits(torch.rand(1, *volume))
    assert 8 * count_windows(volume, source.patch_size) == len(calls)


def test_windows_by_hand():
    # 100 voxels, patch 64, steps of at most 32: positions 0, 18, 36; 30 is padded to 64
    assert count_windows((100, 64, 30), (64, 64, 64)) == 3
    assert count_windows((7, 64, 100), (64, 64)) == 7 * 3
    with pytest.raises(SettingsError, match="a volume of 10x10 does not go with a patch of 8x8x8"):
        count_windows((10, 10), (8, 8, 8))


def test_mirroring_is_nnunets(model):
    source = read_network(model)
    patch = torch.rand(1, 1, *source.patch_size)
    predictor = source.predictor
    predictor.use_mirroring = True
    predictor.use_gaussian = False  # weights near 0 in half precision would spoil the patch's corners
    with torch.inference_mode():
        ours = mirrored(source.network, source.mirror_axes)(patch)[0]
        theirs = predictor.predict_sliding_window_return_logits(patch[0])
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-2, atol=2e-3)  # half precision


def test_parameters_are_the_checkpoints(model):
    source = read_network(model)
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in weights.values()}  # decoders hold their encoder too
    assert source.parameters == sum(distinct.values())
    assert source.file_bytes == (model / "fold_0" / "checkpoint_final.pth").stat().st_size


def test_a_folder_a_zip_and_a_plan_cost_the_same(model, tmp_path):
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in model.rglob("*"):
            if path.is_file():
                file.write(path, f"Dataset999_Shells/{model.name}/{path.relative_to(model)}")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "dataset.json").write_text(json.dumps(DATASET_JSON))
    plan = tmp_path / "plans" / "nnUNetPlans.json"
    plan.write_text(json.dumps(plans()))
    sources = [read_network(path) for path in (model, archive, plan)]
    assert len({source.parameters for source in sources}) == 1
    assert len({count_flops(source) for source in sources}) == 1
    assert [source.file_bytes for source in sources][1:] == [archive.stat().st_size, None]
    patch = torch.rand(1, 1, *sources[0].patch_size)
    torch.testing.assert_close(sources[0].network(patch), sources[1].network(patch))


def test_the_volume_of_a_2d_plan_has_all_slices(tmp_path):
    plan = plans()
    plan["original_median_shape_after_transp"] = [20, 40, 40]
    described = plan["configurations"]["3d_fullres"]
    arguments = described["architecture"]["arch_kwargs"]
    described |= {"patch_size": [16, 16], "median_image_size_in_voxels": [30.0, 30.0], "spacing": [1.0, 1.0]}
    for key in ("kernel_sizes", "strides"):
        arguments[key] = [size[1:] if isinstance(size, (list, tuple)) else size for size in arguments[key]]
    for key in ("conv_op", "norm_op"):
        arguments[key] = arguments[key].replace("3d", "2d")
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plan))
    source = read_network(tmp_path / "nnUNetPlans.json")
    assert source.volume_shape == (20, 30, 30)
    del plan["original_median_shape_after_transp"]
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plan))
    assert read_network(tmp_path / "nnUNetPlans.json").volume_shape is None


@pytest.fixture
def onnx_file(tmp_path):
    """A convolution with open batch and patch, and the PyTorch layer it holds."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    layer = nn.Conv3d(2, 3, 3, padding=1)
    shapes = {"x": ["batch", 2, "d", "h", "w"], "y": ["batch", 3, "d", "h", "w"]}
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )  # fmt: skip
    node = onnx.helper.make_node("Conv", ["x", "weight", "bias"], ["y"], pads=[1] * 6)
    weights = [onnx.numpy_helper.from_array(p.detach().numpy(), name) for name, p in layer.named_parameters()]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y], weights),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx", layer


def test_an_onnx_file_is_profiled_with_the_json_beside_it(onnx_file, monkeypatch):
    path, layer = onnx_file
    with pytest.raises(ModelError, match=r"its patch is not known\. Put its JSON with `patch_size` beside it, m\.json"):
        read_network(path)
    path.with_suffix(".json").write_text(json.dumps({"patch_size": [8, 10, 12], "mirror_axes": [0, 2]}))
    source = read_network(path)
    assert (source.input_channels, source.patch_size, source.mirror_axes) == (2, (8, 10, 12), (0, 2))
    assert source.parameters == 3 * 2 * 27 + 3
    assert source.file_bytes == path.stat().st_size
    patch = torch.rand(1, 2, 8, 10, 12)
    torch.testing.assert_close(source.network(patch), layer(patch).detach(), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(
        "nnunet_kd.evaluation.costs.profiling.cpu_peak_memory", lambda *_: None
    )  # starts a process; tested below
    (found,) = profile_models({"onnx": path}, ProfileOptions(repeats=2, warmup=0))
    assert (found.flops_patch, found.mirror_passes) == (None, 4)
    assert set(found.devices["cpu"].latency) == {"patch", "patch_mirrored"}
    path.with_suffix(".json").write_text(json.dumps({"patch_size": [8, 10]}))
    with pytest.raises(ModelError, match="of different models"):
        read_network(path)
    path.with_suffix(".json").unlink()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match="no ONNX file that onnxruntime runs"):
        read_network(path)


def test_parameters_of_a_quantised_onnx_file_are_its_weights(onnx_file, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(onnx_file[0]))
    graph = model.graph
    quantised = onnx.numpy_helper.from_array(
        (onnx.numpy_helper.to_array(graph.initializer[0]) * 100).astype("int8"), "q"
    )
    scale = onnx.numpy_helper.from_array(np.full(3, 0.01, dtype=np.float32), "scale")
    zero = onnx.numpy_helper.from_array(np.zeros(3, dtype=np.int8), "zero")
    del graph.initializer[0]
    graph.initializer.extend([quantised, scale, zero])
    graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["weight"], axis=0))
    onnx.save(model, str(tmp_path / "q.onnx"))
    (tmp_path / "q.json").write_text(json.dumps({"patch_size": [8, 8, 8]}))
    assert read_network(tmp_path / "q.onnx").parameters == 3 * 2 * 27 + 3


def test_onnx_without_onnxruntime_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(MissingRequirement, match=r"nnunet-kd\[onnx\]"):
        read_network(tmp_path / "m.onnx")


def test_a_profile_holds_everything_and_survives_its_file(model, tmp_path):
    (found,) = profile_models({"teacher": model}, ProfileOptions(repeats=2, warmup=1))
    assert found.volume_shape == (10, 20, 30)
    assert found.windows == count_windows((10, 20, 30), (8, 16, 16))
    assert found.flops_volume == found.windows * found.flops_patch
    assert found.flops_volume_mirrored == 8 * found.flops_volume
    latency = found.devices["cpu"].latency
    assert set(latency) == {"patch", "patch_mirrored", "volume", "volume_mirrored"}
    assert latency["patch_mirrored"].median > latency["patch"].median
    assert latency["volume_mirrored"].median > latency["volume"].median
    memory = found.devices["cpu"].peak_memory_bytes
    assert memory is None or 4 * found.parameters < memory < 2**31
    write_profiles([found], tmp_path / "p.json")
    assert read_profiles(tmp_path / "p.json") == {"teacher": found}
    table = profile_table([found])
    assert table.rows[0] == ("Parameters (M)", f"{found.parameters / 1e6:.3g}")
    assert any(row[0] == "Latency, volume, mirrored, cpu (ms)" for row in table.rows)


def test_ratios_are_to_the_first_model(tmp_path):
    large = write_model(tmp_path / "large", plan=plans(features=(16, 32)))
    small = write_model(tmp_path / "small", plan=plans(features=(4, 8)))
    options = ProfileOptions(devices=(), volume_shape=(8, 16, 16))
    profiles = profile_models({"large": large, "small": small}, options)
    ratio = profiles[0].parameters / profiles[1].parameters
    assert profile_table(profiles).rows[0][2].endswith(f"[{ratio:.1f}{TIMES}]")
    assert 10 < ratio < 17


def test_cuda_that_is_not_there_is_an_error(model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SettingsError, match="no CUDA device here"):
        profile_models({"m": model}, ProfileOptions(devices=("cuda",)))


def test_what_cannot_be_read_is_named(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="absent does not exist"):
        read_network(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"no fold_4/checkpoint_final\.pth.*found: fold_0/checkpoint_final\.pth"):
        read_network(model, fold="4")
    with pytest.raises(ModelError, match="found: none"):
        read_network(tmp_path / "empty")
    lonely = tmp_path / "plans.json"
    lonely.write_text(json.dumps(plans()))
    with pytest.raises(PlanError, match=r"dataset\.json is missing"):
        read_network(lonely)
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET_JSON))
    with pytest.raises(PlanError, match=r"no configuration '2d' \(it has 3d_fullres\)"):
        read_network(lonely, configuration="2d")
    (tmp_path / "m.zip").write_bytes(b"PK no")
    with pytest.raises(ModelError, match="not a complete zip archive"):
        read_network(tmp_path / "m.zip")
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth cannot be read"):
        read_network(model)
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(DataError, match=r"p\.json is no profile"):
        read_profiles(tmp_path / "p.json")


def test_the_predictor_is_quiet(capsys):
    new_predictor()
    assert capsys.readouterr().out == ""
