"""What an export's JSON holds is checked when it is read: the message names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nnunet_kd_runtime", reason="needs ./runtime")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from nnunet_kd_runtime.description import read_model
from nnunet_kd_runtime.errors import ModelError
from tests.runtime.refusing import edit, images, model, pair, refused

__all__ = ["images", "model", "pair"]


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
