"""Every kind of model that nnU-Net trains, and plans as its first releases wrote them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.errors import NnunetKdWarning
from nnunet_kd.workflows.bench.pair import DATASET_JSON
from nnunet_kd.workflows.shrink import run as run_module
from tests.workflows.shrink.tiny_shrink import prepare, shrink, tiny_plans, write_images, write_model, zip_alone

REGIONS: dict[str, Any] = {
    **DATASET_JSON, "labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2],
}  # fmt: skip
TWO_CHANNELS: dict[str, Any] = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(monkeypatch)


def first_stage() -> dict[str, Any]:
    """A cascade's plan whose first stage was trained."""
    plans = tiny_plans(configuration="3d_lowres")
    second = json.loads(json.dumps(plans["configurations"]["3d_lowres"]))
    plans["configurations"]["3d_lowres"]["next_stage"] = "3d_cascade_fullres"
    plans["configurations"]["3d_cascade_fullres"] = {**second, "previous_stage": "3d_lowres"}
    return plans


def old_format(plans: dict[str, Any]) -> dict[str, Any]:
    """A plan as nnU-Net 2.0 to 2.3 wrote it: the architecture as loose entries of the configuration."""
    for configuration in plans["configurations"].values():
        arguments = configuration.pop("architecture")["arch_kwargs"]
        features = arguments["features_per_stage"]
        configuration |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": features[0],
            "unet_max_num_features": max(features),
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
            "num_pool_per_axis": [len(features) - 1] * 3,
        }
    return plans


CASES: dict[str, tuple[dict[str, Any], Mapping[str, Any], int]] = {
    "residual": (tiny_plans(architecture="ResidualEncoderUNet"), DATASET_JSON, 0),
    "regions": (tiny_plans(), REGIONS, 0),
    "2d": (tiny_plans(dimensions=2), DATASET_JSON, 0),
    "two_channels": (tiny_plans(channels=2), TWO_CHANNELS, 2),
    "first_stage": (first_stage(), DATASET_JSON, 0),
    "old_format": (old_format(tiny_plans()), DATASET_JSON, 0),
}


def model_of(root: Path, plans: dict[str, Any], dataset: Mapping[str, Any]) -> Path:
    """Of the first configuration of a plan."""
    second = {name: plans["configurations"][name] for name in list(plans["configurations"])[1:]}
    alone = {
        **plans,
        "configurations": {name: own for name, own in plans["configurations"].items() if name not in second},
    }
    made = write_model(root, alone, dataset)
    (made / "plans.json").write_text(json.dumps(plans))
    return made


def shrunk(kind: str, root: Path) -> dict[str, Any]:
    plans, dataset, channels = CASES[kind]
    model, images = model_of(root, json.loads(json.dumps(plans)), dataset), write_images(root / "images", 5, channels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NnunetKdWarning)
        result = shrink(model, images, root / "out", "--iterations", "2", "--allow-empty")
    assert result.exit_code == 0, (result.output, result.exception)
    assert (root / "out" / "student.zip").is_file()
    return dict(json.loads((root / "out" / "agreement.json").read_text()))


@pytest.mark.parametrize("kind", ["regions", "2d"])
def test_kinds_that_differ_most(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "export_student", zip_alone)
    classes = shrunk(kind, tmp_path)["classes"]
    assert list(classes) == (["whole", "core"] if kind == "regions" else ["anterior", "posterior"])


@pytest.mark.nightly
@pytest.mark.parametrize("kind", list(CASES))
def test_every_kind(kind: str, tmp_path: Path) -> None:
    shrunk(kind, tmp_path)
    assert (tmp_path / "out" / "student.onnx").is_file()
