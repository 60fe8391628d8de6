"""The JSON beside an ONNX network: everything a program needs to reproduce nnU-Net's prediction around it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_kd
from nnunet_kd.errors import ModelError
from nnunet_kd.models.folder import ModelFolder, read_json
from nnunet_kd.nnunet.checkpoints import MIRROR_AXES, TRAINER, trained_configuration
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.nnunet.networks import network_inputs
from nnunet_kd.system.files import sha256

FORMAT = "nnunet-kd onnx"
VERSION = 1
INPUT, OUTPUT = "image", "logits"

_EXPORT_AGAIN = "Both files must be of one export: `nnunet-kd export MODEL OUT.onnx --to onnx`."


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file with its checked description.

    Attributes:
        path: the ONNX file.
        description: the JSON's content, see :func:`describe`.
    """

    path: Path
    description: dict[str, Any]

    @property
    def input_channels(self) -> int:
        """Channels of the network's input, those of a cascade's previous stage included."""
        return int(self.description["input_channels"])

    @property
    def output_channels(self) -> int:
        """Segmentation heads."""
        return int(self.description["output_channels"])

    @property
    def input_name(self) -> str:
        """Of the image."""
        return str(self.description["onnx"].get("input", INPUT))

    @property
    def output_name(self) -> str:
        """Of the logits."""
        return str(self.description["onnx"].get("output", OUTPUT))

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Voxels a side."""
        return tuple(self.description["patch_size"])


def json_path(onnx: Path) -> Path:
    """The JSON that belongs to an ONNX file: same stem, same folder."""
    return onnx.with_suffix(".json")


def describe(
    model: ModelFolder, checkpoint: Mapping[str, Any], onnx: Path, precision: str, opset: int
) -> dict[str, Any]:
    """The JSON's content.

    Axes, spacing and patch size are in the network's order, after ``transpose_forward``; spacing in millimetres. Besides
    what a small program needs, ``plans`` and ``dataset_json`` are nnU-Net's own files in full.

    Args:
        model: what was exported.
        checkpoint: of its first fold.
        onnx: the written file; named in the JSON by its name after the export.
        precision: float32, float16 or int8.
        opset: the ONNX operator set.
    """
    mirror = checkpoint.get(MIRROR_AXES)
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "written_by": f"nnunet-kd {nnunet_kd.__version__}",
        "onnx": {
            "sha256": sha256(onnx),
            "input": INPUT,
            "output": OUTPUT,
            "precision": precision,
            "opset": opset,
        },
        "trainer": checkpoint[TRAINER],
        "folds": list(model.folds),
        "checkpoint": model.checkpoint,
        "mirror_axes": list(mirror) if mirror else [],
        "postprocessing": _postprocessing(model),
        **surroundings(model.plans(), model.dataset_json(), trained_configuration(checkpoint)),
    }


def surroundings(plans: dict[str, Any], dataset_json: dict[str, Any], name: str) -> dict[str, Any]:
    """What nnU-Net does before and after a network of this plan; part of :func:`describe`.

    Args:
        plans, dataset_json: nnU-Net's own.
        name: of the configuration.
    """
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    labels = manager.get_label_manager(dataset_json)
    statistics = manager.foreground_intensity_properties_per_channel
    resolved = configuration.configuration
    return {
        "configuration": name,
        "channels": {str(number): channel for number, channel in enumerate(channel_names(dataset_json))},
        "input_channels": network_inputs(manager, configuration, dataset_json),
        "output_channels": labels.num_segmentation_heads,
        "file_ending": dataset_json["file_ending"],
        "image_reader_writer": plans["image_reader_writer"],
        "preprocessor": configuration.preprocessor_name,
        "label_manager": plans.get("label_manager", "LabelManager"),
        "transpose_forward": plans["transpose_forward"],
        "transpose_backward": plans["transpose_backward"],
        "crop": "to the box of voxels that are not zero in any channel, holes filled, before normalization",
        "normalization": [
            {"scheme": scheme, "use_mask": bool(mask), "intensities": statistics.get(str(channel))}
            for channel, (scheme, mask) in enumerate(
                zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
            )
        ],
        "spacing": list(configuration.spacing),
        "resampling": {key: value for key, value in resolved.items() if key.startswith("resampling_fn")},
        "patch_size": list(configuration.patch_size),
        "sliding_window": {
            "step": 0.5,
            "gaussian_sigma": 0.125,
            "unit": "fraction of the patch",
            "gaussian_maximum": 10,
            "sums": "float16",
        },
        "activation": "sigmoid" if labels.has_regions else "softmax",
        "labels": dataset_json["labels"],
        "regions_class_order": dataset_json.get("regions_class_order"),
        "previous_stage": resolved.get("previous_stage"),
        "plans": plans,
        "dataset_json": dataset_json,
    }


def read_onnx_model(path: Path) -> OnnxModel:
    """Read and check an ONNX file's description.

    Raises:
        ModelError: a file is missing, damaged, of another export, or of a version this package does not know.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ModelError(f"there is no ONNX file {path}. {_EXPORT_AGAIN}")
    description = read_json(json_path(path), "the description of the ONNX network", _EXPORT_AGAIN)
    if description.get("format") != FORMAT:
        raise ModelError(f"{json_path(path)} does not describe an exported network. {_EXPORT_AGAIN}")
    if description.get("format_version") != VERSION:
        raise ModelError(
            f"{json_path(path)} has format version {description.get('format_version')}, this nnunet-kd reads {VERSION}. "
            f"Install a matching nnunet-kd or export again."
        )
    needed = ("onnx", "input_channels", "output_channels", "patch_size", "configuration", "plans", "dataset_json")
    missing = [key for key in needed if key not in description]
    if missing:
        raise ModelError(f"{json_path(path)} is incomplete: it has no {', '.join(missing)}. {_EXPORT_AGAIN}")
    found, expected = sha256(path), description["onnx"].get("sha256")
    if found != expected:
        raise ModelError(
            f"{path} and {json_path(path).name} do not belong together: the JSON describes a file with SHA-256 {expected}, "
            f"this one has {found} ({path.stat().st_size} bytes). {_EXPORT_AGAIN}"
        )
    return OnnxModel(path, description)


def dump(description: Mapping[str, Any]) -> bytes:
    """The JSON's text."""
    return json.dumps(description, indent=1).encode()


def _postprocessing(model: ModelFolder) -> dict[str, Any] | None:
    """What nnU-Net's cross-validation of exactly these folds found to improve the segmentation; ``None`` if not determined."""
    folder = model.cross_validation()
    path = None if folder is None else folder / "postprocessing.json"
    if path is None or not path.is_file():
        return None
    return read_json(path, "the postprocessing", "Determine it again with nnUNetv2_determine_postprocessing.")
