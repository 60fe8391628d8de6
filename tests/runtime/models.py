"""Models for the runtime without training: plans described as an export describes them, and networks that are formulas."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.inference.onnx_metadata import FORMAT, VERSION, surroundings
from nnunet_kd_runtime.description import Model, understand
from tests.conftest import make_plans

CT = {"mean": 40.0, "std": 20.0, "percentile_00_5": -3.0, "percentile_99_5": 100.0}


def dataset(channels: int = 1, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "channel_names": {str(number): f"C{number}" for number in range(channels)},
        "labels": {"background": 0, "ball": 1, "core": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    return {**made, **changes}


def plans(channels: int = 1, dimensions: int = 3, **changes: Any) -> tuple[dict[str, Any], str]:
    """A tiny plan and its configuration's name; ``changes`` go to the plan, or to the configuration where it has the key."""
    made = make_plans(channels=channels, dimensions=dimensions, patch=(16, 12, 16))
    name = next(iter(made["configurations"]))
    made["foreground_intensity_properties_per_channel"] = {str(number): CT for number in range(channels)}
    for key, value in changes.items():
        target = (
            made["configurations"][name] if key in made["configurations"][name] or key == "previous_stage" else made
        )
        target[key] = value
    return made, name


def describe(plan: dict[str, Any], name: str, data: dict[str, Any], mirror: tuple[int, ...] = ()) -> dict[str, Any]:
    """The JSON of an export of this plan."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "onnx": {"sha256": "", "input": "image", "output": "logits"},
        "trainer": "nnUNetTrainer",
        "mirror_axes": list(mirror),
        "postprocessing": None,
        **surroundings(deepcopy(plan), deepcopy(data), name),
    }


def model(plan: dict[str, Any], name: str, data: dict[str, Any], mirror: tuple[int, ...] = ()) -> Model:
    return understand(describe(plan, name, data, mirror), Path("model.onnx"))


def stock_preprocess(
    plan: dict[str, Any],
    name: str,
    data: dict[str, Any],
    image: np.ndarray,
    spacing: Any,
    previous: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """nnU-Net's preprocessed array, a cascade's previous stage stacked on it, and its properties."""
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    manager = PlansManager(plan)
    stage = None if previous is None else previous[None]
    result, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image, stage, {"spacing": list(spacing)}, manager, manager.get_configuration(name), data
    )
    if previous is not None:
        labels = manager.get_label_manager(data).foreground_labels
        result = np.vstack([result, convert_labelmap_to_one_hot(seg[0], labels, result.dtype)])
    return result, properties


class Formula(torch.nn.Module):
    """Logits from local means of the image: as sensitive as a network, without training. Any number of heads."""

    def __init__(self, channels: int, heads: int, dimensions: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = torch.nn.Conv3d if dimensions == 3 else torch.nn.Conv2d
        self.layers = torch.nn.Sequential(
            convolution(channels, 6, 3, padding=1), torch.nn.LeakyReLU(), convolution(6, heads, 3, padding=1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image) * 8

    def numpy(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self(torch.from_numpy(batch)).numpy()
