"""The JSON beside an ONNX network: read, checked, and refused where it asks for what this package does not reproduce."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_kd_runtime.described_values import (
    count,
    is_number,
    lengths,
    mapping,
    mappings,
    optional_text,
    orders_of_axes,
    sides,
    some_axes,
    text,
    wrong,
)
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
    except OSError as error:
        raise ModelError(f"{beside} cannot be read ({error.strerror}). {_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{beside} is not valid JSON ({error}). {_AGAIN}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelError(f"{beside} does not describe an exported network. {_AGAIN}")
    if description.get("format_version") != VERSION:
        raise ModelError(
            f"{beside} has format version {description.get('format_version')}, this nnunet-kd-runtime reads {VERSION}. "
            f"Install a matching nnunet-kd-runtime or export again."
        )
    model = understand(description, path)
    with _naming(beside):
        expected = text(description["onnx"], "sha256")
    found = _sha256(path)
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
        ModelError: something is missing or does not hold, or a reader, preprocessor, normalisation or resampling function is
            not nnU-Net's; named.
    """
    with _naming(json_path(path)):
        model = _understand(description, path)
        _refuse_unknown(model)
    return model


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about values that say which JSON they are of."""
    try:
        yield
    except KeyError as error:
        raise ModelError(f"{path} is incomplete: it has no {error}. {_AGAIN}") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ModelError(f"{path} holds something else than an export writes: {error}. {_AGAIN}") from error


def _understand(description: Mapping[str, Any], path: Path) -> Model:
    plans, functions = mapping(description, "plans"), mapping(description, "resampling")
    network = mapping(description, "onnx")
    patch_size = sides(description, "patch_size")
    forward, backward = orders_of_axes(description, "transpose_forward", "transpose_backward")
    return Model(
        path=path,
        description=description,
        input_name=text(network, "input"),
        output_name=text(network, "output"),
        channels=tuple(str(name) for name in mapping(description, "channels").values()),
        input_channels=count(description, "input_channels"),
        output_channels=count(description, "output_channels"),
        patch_size=patch_size,
        spacing=lengths(description, "spacing", len(patch_size)),
        transpose_forward=forward,
        transpose_backward=backward,
        normalization=tuple(
            Normalization(
                text(how, "scheme"),
                bool(how["use_mask"]),
                mapping(how, "intensities") if how["intensities"] else _old_intensities(plans).get(str(channel), {}),
            )
            for channel, how in enumerate(mappings(description, "normalization"))
        ),
        resampling={
            role: Resampling(
                text(functions, f"resampling_fn_{role}"),
                mapping(functions, name) if functions.get(name := f"resampling_fn_{role}_kwargs") else {},
            )
            for role in ("data", "seg", "probabilities")
        },
        mirror_axes=some_axes(description, "mirror_axes", len(patch_size)),
        labels=Labels.of(mapping(description, "dataset_json")),
        reader=text(description, "image_reader_writer"),
        file_ending=text(description, "file_ending"),
        previous_stage=optional_text(description, "previous_stage"),
        postprocessing=description.get("postprocessing"),
    )


def _old_intensities(plans: Mapping[str, Any]) -> Mapping[str, Any]:
    """Statistics under the name that nnU-Net's first plans had; older exports looked for the newer name alone."""
    old = "foreground_intensity_properties_by_modality"
    return mapping(plans, old) if old in plans else {}


def preprocessor_of(description: Mapping[str, Any]) -> str:
    """The plan's preprocessor; older exports name it only within the plan, where configurations inherit."""
    if "preprocessor" in description:
        return text(description, "preprocessor")
    configurations = mapping(description["plans"], "configurations")
    configuration = mapping(configurations, text(description, "configuration"))
    for _ in configurations:  # as many steps as there are configurations: a circle has no end
        if "preprocessor_name" not in configuration:
            configuration = mapping(configurations, text(configuration, "inherits_from"))
    return text(configuration, "preprocessor_name")


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
        for key in needed if how.scheme == "CTNormalization" else ():
            if not is_number(how.intensities[key]):
                raise wrong(f"{key} of the intensities", how.intensities[key], "a number")
    for role, resampling in model.resampling.items():
        resampling.check(role)
    if model.output_channels != model.labels.heads:
        raise ModelError(
            f"{json_path(model.path)} gives {model.output_channels} output channels for {model.labels.heads} labels or "
            f"regions. {_AGAIN}"
        )
    if len(model.normalization) != len(model.channels):
        raise ModelError(
            f"{json_path(model.path)} has {len(model.normalization)} entries in normalization for {len(model.channels)} "
            f"channels. {_AGAIN}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
