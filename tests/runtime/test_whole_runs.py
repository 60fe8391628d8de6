"""Whole runs of the runtime beside nnU-Net, one small case of each kind, from files to files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

import nnunet_kd_runtime
from nnunet_kd_runtime.session import Options, run
from tests.deployment import segmentation
from tests.runtime.exported import Pair, differing, export, write_images
from tests.runtime.models import dataset

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
TORCH = {
    f"resampling_fn_{role}{suffix}": value
    for role in ("data", "seg", "probabilities")
    for suffix, value in (("", "resample_torch_fornnunet"), ("_kwargs", {"is_seg": role == "seg"}))
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two channels, turned": {"channels": 2, "transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]},
    "ct": {"normalization_schemes": ["CTNormalization"]},
    "regions": {"data_json": dataset(**REGIONS)},
    "2d": {"dimensions": 2},
    "torch": TORCH,
    "nibabel": {"image_reader_writer": "NibabelIO"},
    "reoriented": {"image_reader_writer": "NibabelIOWithReorient"},
}
SPACINGS = ((1.0, 1.0, 1.0), (1.3, 0.8, 1.1), (0.9, 1.0, 5.0))


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return export(tmp_path_factory.mktemp("model"), **KINDS[request.param])


def test_same_files(pair: Pair, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", len(pair.data_json["channel_names"]), SPACINGS)
    stock = pair.predict_stock(images, tmp_path / "stock", probabilities=True)
    own = pair.predict(images, tmp_path / "own", probabilities=True)
    sizes = [segmentation(path).size for path in sorted(stock.glob("*.nii.gz"))]
    assert all(count <= 1e-4 * size for count, size in zip(differing(stock, own), sizes, strict=True))
    assert {path.name for path in stock.iterdir()} - {path.name for path in own.iterdir()} == {
        "predict_from_raw_data_args.json"
    }
    for path in stock.glob("*.npz"):
        expected, found = (np.load(folder / path.name)["probabilities"] for folder in (stock, own))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2)  # two roundings of float16 logits around 10
        kept = [pickle.loads((folder / path.with_suffix(".pkl").name).read_bytes()) for folder in (stock, own)]
        for name in ("shape_before_cropping", "bbox_used_for_cropping", "shape_after_cropping_and_before_resampling"):
            assert np.array_equal(kept[0][name], kept[1][name])
    labels = np.unique(np.concatenate([segmentation(path).ravel() for path in own.glob("*.nii.gz")]))
    assert list(labels) == [0, 1, 2]


def test_cascade(tmp_path: Path) -> None:
    first, second = export(tmp_path / "first"), export(tmp_path / "second", previous_stage="3d_lowres")
    images = write_images(tmp_path / "images", 1, SPACINGS)
    stage = first.predict_stock(images, tmp_path / "stage")
    stock = second.predict_stock(images, tmp_path / "stock", previous=stage)
    own = second.predict(images, tmp_path / "own", previous_stage=stage)
    assert sum(differing(stock, own)) <= 2
    without = first.predict(images, tmp_path / "without")
    assert sum(differing(stock, without)) > 100


def test_options(tmp_path: Path) -> None:
    pair = export(tmp_path)
    images = write_images(tmp_path / "images", 1, ((1.0, 1.0, 1.0),))
    pair.stock.use_mirroring, pair.stock.tile_step_size = False, 0.8
    stock = pair.predict_stock(images, tmp_path / "stock")
    own = pair.predict(images, tmp_path / "own", mirroring=False, step=0.8)
    assert sum(differing(stock, own)) <= 1
    assert sum(differing(stock, pair.predict(images, tmp_path / "mirrored"))) > 10


def test_postprocessing(tmp_path: Path) -> None:
    from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing as apply
    from nnunetv2.postprocessing.remove_connected_components import (
        remove_all_but_largest_component_from_segmentation as keep_largest,
    )

    pair = export(tmp_path)
    images = write_images(tmp_path / "images", 1, ((1.0, 1.0, 1.0),))
    path = pair.onnx.with_suffix(".json")
    description = json.loads(path.read_text())
    arguments = [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 2}, {"labels_or_regions": [[1, 2], 2]}]
    names = ["remove_all_but_largest_component_from_segmentation"] * 3
    description["postprocessing"] = {"postprocessing_fns": names, "postprocessing_kwargs": arguments}
    path.write_text(json.dumps(description))
    plain = segmentation(pair.predict(images, tmp_path / "plain") / "case0.nii.gz")
    own = segmentation(pair.predict(images, tmp_path / "own", postprocessing=True) / "case0.nii.gz")
    assert np.array_equal(own, apply(plain, [keep_largest] * 3, arguments))
    assert not np.array_equal(own, plain)


def test_arrays(tmp_path: Path) -> None:
    pair = export(tmp_path)
    images = write_images(tmp_path / "images", 1, ((1.3, 0.8, 1.1),))
    stock = segmentation(pair.predict_stock(images, tmp_path / "stock") / "case0.nii.gz")
    values = segmentation(images / "case0_0000.nii.gz")
    found = nnunet_kd_runtime.segment(pair.onnx, values, (1.1, 0.8, 1.3))
    assert found.dtype == np.uint8
    assert np.sum(found != stock) <= 1e-4 * stock.size


def test_old_descriptions_still_load(tmp_path: Path) -> None:
    pair = export(tmp_path)
    path = pair.onnx.with_suffix(".json")
    description = json.loads(path.read_text())
    for name in ("preprocessor", "label_manager"):
        del description[name]
    path.write_text(json.dumps(description))
    images = write_images(tmp_path / "images")
    assert run(pair.onnx, [images], tmp_path / "out", Options(threads=1)).predicted == 1


def test_files_instead_of_folders(tmp_path: Path) -> None:
    pair = export(tmp_path, channels=2)
    images = write_images(tmp_path / "images", 2, SPACINGS)
    whole = pair.predict(images, tmp_path / "whole")
    pair.predict(
        [images / "case1_0000.nii.gz"], tmp_path / "named.nii.gz"
    )  # the second channel is found beside the first
    assert np.array_equal(segmentation(tmp_path / "named.nii.gz"), segmentation(whole / "case1.nii.gz"))
    for number in (0, 1):
        (images / f"case2_000{number}.nii.gz").rename(tmp_path / f"scan{number}.nii.gz")
    pair.predict([tmp_path / "scan0.nii.gz", tmp_path / "scan1.nii.gz"], tmp_path / "listed")
    assert np.array_equal(segmentation(tmp_path / "listed" / "scan0.nii.gz"), segmentation(whole / "case2.nii.gz"))


def test_finished_cases_are_kept(tmp_path: Path) -> None:
    pair = export(tmp_path)
    images = write_images(tmp_path / "images", 1, SPACINGS)
    options, output = Options(threads=1), tmp_path / "out"
    told: list[tuple[str, float, int, int]] = []
    assert run(pair.onnx, [images], output, options).predicted == 3
    before = (output / "case0.nii.gz").stat().st_mtime_ns
    (output / "case1.nii.gz").unlink()
    counts = run(pair.onnx, [images], output, options, lambda *given: told.append(given))
    assert (counts.predicted, counts.kept) == (1, 2)
    assert (output / "case0.nii.gz").stat().st_mtime_ns == before
    assert told[-1] == ("case1", pytest.approx(1), 1, 2)
    assert run(pair.onnx, [images], output, Options(threads=1, overwrite=True)).predicted == 3
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == []


def test_probabilities_of_what_was_replaced_go_with_it(tmp_path: Path) -> None:
    pair = export(tmp_path)
    images = write_images(tmp_path / "images")
    output = pair.predict(images, tmp_path / "out", probabilities=True)
    old = (output / "case0.npz").read_bytes()
    pair.predict(images, output, mirroring=False, overwrite=True)
    assert not list(output.glob("*.npz")) + list(output.glob("*.pkl"))
    pair.predict(images, output, mirroring=False, probabilities=True)
    assert (output / "case0.npz").read_bytes() != old


def test_little_memory(tmp_path: Path) -> None:
    pair = export(tmp_path)
    images = write_images(tmp_path / "images", 1, SPACINGS[:2])
    plain = pair.predict(images, tmp_path / "plain", probabilities=True)
    # enough for an image and one channel, not for class maps nor for a second case
    tight = pair.predict(images, tmp_path / "tight", probabilities=True, memory=0.0003)
    assert differing(plain, tight) == [0, 0]
    for path in plain.glob("*.npz"):
        assert np.array_equal(np.load(path)["probabilities"], np.load(tight / path.name)["probabilities"])


def test_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    pair = export(tmp_path)
    images = write_images(tmp_path / "images", 1, SPACINGS[:2])
    stock = pair.predict_stock(images, tmp_path / "stock")
    assert sum(differing(stock, pair.predict(images, tmp_path / "own", backend="openvino"))) <= 3


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_smaller_networks(precision: str, tmp_path: Path) -> None:
    from nnunet_kd.export.quantisation import to_float16, to_int8
    from nnunet_kd.system.files import sha256

    pair = export(tmp_path)
    images = write_images(tmp_path / "images", 1, SPACINGS[:2])
    full = pair.predict(images, tmp_path / "full")
    if precision == "float16":
        to_float16(pair.onnx, pair.onnx)
    else:
        generator = np.random.default_rng(0)
        patches = [generator.normal(size=(1, 1, 16, 12, 16)).astype(np.float32) for _ in range(4)]
        to_int8(pair.onnx, pair.onnx, patches)
    path = pair.onnx.with_suffix(".json")
    description = json.loads(path.read_text())
    description["onnx"]["sha256"] = sha256(pair.onnx)
    path.write_text(json.dumps(description))
    smaller = pair.predict(images, tmp_path / "smaller")
    size = sum(segmentation(file).size for file in full.glob("*.nii.gz"))
    assert sum(differing(full, smaller)) <= (0.001 if precision == "float16" else 0.1) * size
