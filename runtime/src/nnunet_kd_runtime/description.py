"""The JSON beside an ONNX network: read, checked, and refused where it asks for what this package does not reproduce."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_kd_runtime.errors import ModelError
from nnunet_kd_runtime.labels import Labels
from nnunet_kd_runtime.normalization import SCHEMES
from nnunet_kd_runtime.readers import READERS
from nnunet_kd_runtime.resampling import Resampling

FORMAT = "nnunet-kd onnx"
VERSION = 1
PREPROCESSOR = "DefaultPreprocessor"
"""The only one that nnU-Net ships."""
_AGAIN = "Both files must be of one export: nnunet-kd export MODEL OUT.onnx --to onnx"


@dataclass(frozen=True)
class Normalization:
    """How one channel is normalised: nnU-Net's class name, the mask's use, the training set's statistics."""

    scheme: str
    use_mask: bool
    intensities: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """An exported network and all that surrounds it. Axes, spacing and patch are in the network's order.

    Attributes:
        path: the ONNX file.
        description: the JSON's content.
        input_name, output_name: of the network.
        channels: names of the image's channels.
        input_channels: with those of a cascade's previous stage.
        output_channels: the network's heads.
        patch_size: voxels a side; two sides for a 2D network.
        spacing: millimetres; as many as the patch has sides.
        transpose_forward, transpose_backward: image axes to network axes, and back.
        normalization: one a channel.
        resampling: by role: data, seg, probabilities.
        mirror_axes: of the patch.
        labels: what the heads mean.
        reader: nnU-Net's class name.
        file_ending: of images and segmentations.
        previous_stage: of a cascade: the configuration whose segmentation it takes.
        postprocessing: nnU-Net's, or ``None``.
    """

    path: Path
    description: Mapping[str, Any]
    input_name: str
    output_name: str
    channels: tuple[str, ...]
    input_channels: int
    output_channels: int
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    normalization: tuple[Normalization, ...]
    resampling: Mapping[str, Resampling]
    mirror_axes: tuple[int, ...]
    labels: Labels
    reader: str
    file_ending: str
    previous_stage: str | None
    postprocessing: Mapping[str, Any] | None

    @property
    def sha256(self) -> str:
        """Of the ONNX file, as its JSON says; :func:`read_model` compares them."""
        return str(self.description["onnx"]["sha256"])


def json_path(onnx: Path) -> Path:
    """The JSON that belongs to an ONNX file: same stem, same folder."""
    return onnx.with_suffix(".json")


def read_model(path: Path) -> Model:
    """Read and check both files of an export.

    Raises:
        ModelError: a file is missing, damaged or of another export, or the model needs what this package does not have.
    """
    path = path.expanduser()
    if path.suffix != ".onnx":
        raise ModelError(f"the model must be an ONNX file of nnunet-kd export, got {path}. {_AGAIN}")
    if not path.is_file():
        raise ModelError(f"there is no ONNX file {path}. {_AGAIN}")
    beside = json_path(path)
    try:
        description = json.loads(beside.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ModelError(f"the description of the ONNX network is missing: {beside}. {_AGAIN}") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{beside} is not valid JSON ({error}). {_AGAIN}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelError(f"{beside} does not describe an exported network. {_AGAIN}")
    if description.get("format_version") != VERSION:
        raise ModelError(
            f"{beside} has format version {description.get('format_version')}, this nnunet-kd-runtime reads {VERSION}. "
            f"Install a matching nnunet-kd-runtime or export again."
        )
    model = understand(description, path)
    expected, found = description["onnx"]["sha256"], _sha256(path)
    if found != expected:
        raise ModelError(
            f"{path} and {beside.name} do not belong together: the JSON describes a file with SHA-256 {expected}, this one "
            f"has {found} ({path.stat().st_size} bytes). {_AGAIN}"
        )
    return model


def understand(description: Mapping[str, Any], path: Path) -> Model:
    """A description as a model.

    Args:
        description: the JSON's content.
        path: the ONNX file, which need not exist yet.

    Raises:
        ModelError: something is missing, or a reader, preprocessor, normalisation or resampling function is not nnU-Net's;
            named.
    """
    try:
        model = _understand(description, path)
    except KeyError as error:
        raise ModelError(f"{json_path(path)} is incomplete: it has no {error}. {_AGAIN}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(f"{json_path(path)} holds something else than an export writes: {error}. {_AGAIN}") from error
    _refuse_unknown(model)
    return model


def _understand(description: Mapping[str, Any], path: Path) -> Model:
    plans, dataset = description["plans"], description["dataset_json"]
    functions = description["resampling"]
    return Model(
        path=path,
        description=description,
        input_name=description["onnx"]["input"],
        output_name=description["onnx"]["output"],
        channels=tuple(str(name) for name in description["channels"].values()),
        input_channels=int(description["input_channels"]),
        output_channels=int(description["output_channels"]),
        patch_size=tuple(int(size) for size in description["patch_size"]),
        spacing=tuple(float(value) for value in description["spacing"]),
        transpose_forward=tuple(int(axis) for axis in description["transpose_forward"]),
        transpose_backward=tuple(int(axis) for axis in description["transpose_backward"]),
        normalization=tuple(
            Normalization(
                how["scheme"],
                bool(how["use_mask"]),
                how["intensities"] or _old_intensities(plans).get(str(channel), {}),
            )
            for channel, how in enumerate(description["normalization"])
        ),
        resampling={
            role: Resampling(functions[f"resampling_fn_{role}"], functions.get(f"resampling_fn_{role}_kwargs") or {})
            for role in ("data", "seg", "probabilities")
        },
        mirror_axes=tuple(int(axis) for axis in description["mirror_axes"]),
        labels=Labels.of(dataset),
        reader=str(description["image_reader_writer"]),
        file_ending=str(description["file_ending"]),
        previous_stage=description.get("previous_stage"),
        postprocessing=description.get("postprocessing"),
    )


def _old_intensities(plans: Mapping[str, Any]) -> Mapping[str, Any]:
    """Statistics under the name that nnU-Net's first plans had; older exports looked for the newer name alone."""
    found: Mapping[str, Any] = plans.get("foreground_intensity_properties_by_modality", {})
    return found


def preprocessor_of(description: Mapping[str, Any]) -> str:
    """The plan's preprocessor; older exports name it only within the plan, where configurations inherit."""
    if "preprocessor" in description:
        return str(description["preprocessor"])
    configurations = description["plans"]["configurations"]
    configuration = configurations[description["configuration"]]
    while "preprocessor_name" not in configuration:
        configuration = configurations[configuration["inherits_from"]]
    return str(configuration["preprocessor_name"])


def _refuse_unknown(model: Model) -> None:
    plans = model.description["plans"]
    preprocessor = preprocessor_of(model.description)
    if preprocessor != PREPROCESSOR:
        raise ModelError(
            f"the model's plan names the preprocessor {preprocessor}, which nnunet-kd-runtime does not have (it has "
            f"{PREPROCESSOR}). Predict with nnU-Net."
        )
    if model.reader not in READERS:
        raise ModelError(
            f"the model's plan names the reader {model.reader}, which nnunet-kd-runtime does not have (it has "
            f"{', '.join(READERS)}). Predict with nnU-Net."
        )
    manager = plans.get("label_manager", "LabelManager")
    if manager != "LabelManager":
        raise ModelError(f"the model's plan names the label manager {manager}, which nnunet-kd-runtime does not have.")
    for how in model.normalization:
        if how.scheme not in SCHEMES:
            raise ModelError(
                f"the model's plan names the normalisation {how.scheme}, which nnunet-kd-runtime does not have (it has "
                f"{', '.join(SCHEMES)}). Predict with nnU-Net."
            )
        needed = ("mean", "std", "percentile_00_5", "percentile_99_5")
        if how.scheme == "CTNormalization" and any(key not in how.intensities for key in needed):
            raise ModelError(
                f"{json_path(model.path)} has no intensity statistics, which CTNormalization needs. {_AGAIN}"
            )
    for role, resampling in model.resampling.items():
        resampling.check(role)
    if model.output_channels != model.labels.heads:
        raise ModelError(
            f"{json_path(model.path)} gives {model.output_channels} output channels for {model.labels.heads} labels or "
            f"regions. {_AGAIN}"
        )
    if len(model.normalization) != len(model.channels) or len(model.spacing) != len(model.patch_size):
        raise ModelError(
            f"{json_path(model.path)} has {len(model.normalization)} normalisations for {len(model.channels)} channels, and "
            f"{len(model.spacing)} spacings for {len(model.patch_size)} axes of the patch. {_AGAIN}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
