"""Tiny networks of every kind as exports, and the same networks as nnU-Net model folders."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.export.onnx_network import write_network
from nnunet_kd.system.files import sha256
from nnunet_kd_runtime.session import Options, run
from tests.deployment import segmentation, write_image
from tests.runtime.models import Formula, dataset, describe, plans

_WRITTEN: dict[tuple[int, ...], bytes] = {}
"""Networks already exported, by channels, heads and patch: PyTorch's exporter takes seconds for each."""


@dataclass
class Pair:
    """An exported network and nnU-Net's predictor with the same network."""

    onnx: Path
    stock: nnUNetPredictor
    data_json: dict[str, Any]

    def predict_stock(
        self, images: Path, output: Path, probabilities: bool = False, previous: Path | None = None
    ) -> Path:
        output.mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()):
            self.stock.predict_from_files_sequential(
                str(images), str(output), probabilities, True, str(previous) if previous else None
            )
        return output

    def predict(self, images: Path | list[Path], output: Path, **options: Any) -> Path:
        run(self.onnx, images if isinstance(images, list) else [images], output, Options(**{"threads": 1, **options}))
        return output


def export(
    folder: Path,
    channels: int = 1,
    dimensions: int = 3,
    mirror: tuple[int, ...] = (0, 1),
    data_json: dict[str, Any] | None = None,
    **changes: Any,
) -> Pair:
    """``changes`` are those of :func:`tests.runtime.models.plans`."""
    data_json = data_json or dataset(channels)
    plan, name = plans(channels, dimensions, **changes)
    description = describe(plan, name, data_json, mirror)
    network = Formula(description["input_channels"], description["output_channels"], dimensions)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    key = (description["input_channels"], description["output_channels"], *description["patch_size"])
    if key not in _WRITTEN:
        write_network(network.eval(), description["input_channels"], description["patch_size"], path)
        _WRITTEN[key] = path.read_bytes()
    path.write_bytes(_WRITTEN[key])
    description["onnx"]["sha256"] = sha256(path)
    path.with_suffix(".json").write_text(json.dumps(description))
    with contextlib.redirect_stdout(io.StringIO()):
        stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    manager = PlansManager(plan)
    stock.manual_initialization(
        network, manager, manager.get_configuration(name), [network.state_dict()], data_json, "none", mirror or None
    )
    return Pair(path, stock, data_json)


def write_images(folder: Path, channels: int = 1, spacings: tuple[tuple[float, ...], ...] = ((1, 1, 1),)) -> Path:
    """A case for each spacing: noise in a box of zeros."""
    for number, spacing in enumerate(spacings):
        shape = tuple(max(2, round(22 / step)) for step in spacing[::-1])
        generator = np.random.default_rng(number)
        for channel in range(channels):
            values = generator.normal(60, 30, shape).astype(np.float32)
            values[:, :3] = 0
            write_image(values, folder / f"case{number}_{channel:04d}.nii.gz", spacing)
    return folder


def differing(first: Path, second: Path) -> list[int]:
    """Voxels that differ, case by case."""
    names = sorted(path.name for path in first.glob("*.nii.gz"))
    assert names
    return [int(np.sum(segmentation(first / name) != segmentation(second / name))) for name in names]
