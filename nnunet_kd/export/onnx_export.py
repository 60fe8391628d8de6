"""An nnU-Net's network as ONNX, checked against PyTorch before it gets its name.

Operator set 18 is what PyTorch's exporter writes without conversion. U-Nets come out as Conv, ConvTranspose,
InstanceNormalization, LeakyRelu, Concat, Add and AveragePool, all with definitions of set 16 or older, which ONNX Runtime and
OpenVINO run and which TensorRT's support matrix lists (github.com/onnx/onnx-tensorrt, docs/operators.md; it asks that
normalization's scale and bias be stored in the file, as they are).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from nnunet_kd.errors import ModelError, SettingsError
from nnunet_kd.export.comparison import Difference, compare_logits, dice_by_label, matching_references
from nnunet_kd.export.patches import image_patches, random_patches
from nnunet_kd.export.quantisation import CALIBRATION_PATCHES, to_float16, to_int8
from nnunet_kd.export.weights import check_weights
from nnunet_kd.inference.cases import InputCase, find_cases
from nnunet_kd.inference.onnx_metadata import INPUT, OUTPUT, OnnxModel, describe, dump, json_path, surroundings
from nnunet_kd.inference.predictor import CasePredictor
from nnunet_kd.inference.runtime_network import open_backend
from nnunet_kd.models.folder import ModelFolder, load_predictor
from nnunet_kd.nnunet.checkpoints import trained_configuration
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import folder_beside, write_atomically
from nnunet_kd.system.requirements import EXTRAS, require

if TYPE_CHECKING:  # it is optional
    from nnunet_kd_runtime.backends import Backend

OPSET = 18
LARGEST_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, which ends at 2 GiB."""
CHECKED_PATCHES = 4


@dataclass(frozen=True)
class OnnxOptions:
    """How a network is exported.

    Attributes:
        weights: final, best or ema.
        precision: float32, float16 or int8.
        images: folder of images to check, and to calibrate int8, on.
        references: folder of their segmentations, for the Dice cost of int8.
        overwrite: replace what lies at the output.
    """

    weights: str = "final"
    precision: str = "float32"
    images: Path | None = None
    references: Path | None = None
    overwrite: bool = False


@dataclass
class OnnxReport:
    """What was written and measured.

    Attributes:
        path: the ONNX file.
        folds: exported folds; several are averaged inside the network.
        differences: to PyTorch, by kind of patch.
        dice: mean Dice by label, of PyTorch's network and the exported one; empty without references.
        dice_cases: cases behind it.
    """

    path: Path
    folds: tuple[str, ...]
    differences: dict[str, Difference]
    dice: dict[str, dict[str, float]] = field(default_factory=dict)
    dice_cases: int = 0

    def lines(self) -> list[str]:
        """The report in words."""
        lines = [f"{kind}, {difference}" for kind, difference in self.differences.items()]
        if "real" not in self.differences:
            lines.append("Checked on random patches only; give images with -i to check on real ones too.")
        for label in self.dice.get("torch", {}):
            full, exported = self.dice["torch"][label], self.dice["exported"][label]
            lines.append(f"Dice of {label}: {full:.4f} before, {exported:.4f} after, {exported - full:+.4f}")
        if self.dice:
            lines.append(f"Dice over {counted(self.dice_cases, 'case')}.")
        averaged = f", the average of folds {', '.join(self.folds)}" if len(self.folds) > 1 else ""
        size = self.path.stat().st_size / 1e6
        return [*lines, f"Wrote {self.path} ({size:.1f} MB{averaged}) and {json_path(self.path).name}."]


class FoldAverage(nn.Module):
    """Mean logits of several folds' networks; what nnU-Net averages after the sliding window, which is linear."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, heads, *patch)``."""
        total: torch.Tensor = self.networks[0](image)
        for network in self.networks[1:]:
            total = total + network(image)
        return total / len(self.networks)


def export_onnx(model: ModelFolder, output: Path, options: OnnxOptions) -> OnnxReport:
    """Write ``output`` and its JSON.

    Raises:
        SettingsError: the output has another ending.
        ModelError: the output exists; the plan names a reader, preprocessor, normalisation or
            resampling function that nnunet-kd-runtime does not have; the exported network differs from PyTorch's beyond the
            tolerance (then nothing is left at the output); the model is damaged or too large.
        MissingRequirement: the extra ``onnx`` is not installed, or the disk refused.
        DataError: the images do not fit the model.
    """
    for module in (name for name, extra in EXTRAS.items() if extra == "onnx"):
        require(module)
    output = output.expanduser().absolute()
    if output.suffix != ".onnx":
        raise SettingsError(f"the output of --to onnx must end in .onnx, got {output}.")
    for path in (output, json_path(output)):
        if path.exists() and not options.overwrite:
            raise ModelError(f"{path} exists already. Choose another name, or replace it with --overwrite.")
    checkpoint = model.read_checkpoint(model.folds[0])
    for fold in model.folds:
        first = fold == model.folds[0]
        check_weights(
            checkpoint if first else model.read_checkpoint(fold), options.weights, model.checkpoint_path(fold)
        )
    predictor = CasePredictor(torch.device("cpu"))
    load_predictor(model, predictor)
    cases = find_cases([options.images], Path("unused"), predictor.dataset_json) if options.images else []
    scored = matching_references(cases, options.references, predictor.reader) if options.references else []
    refuse_unknown_surroundings(model, checkpoint)
    network = _network(predictor, model)
    with folder_beside(output) as workspace, _status() as say:
        exported = workspace / "network.onnx"
        channels = predictor.input_channels
        say("writing the network")
        write_network(network, channels, predictor.configuration_manager.patch_size, exported)
        if options.precision == "float16":
            to_float16(exported, exported)
        elif options.precision == "int8":
            say("calibrating")
            to_int8(exported, exported, image_patches(predictor, cases, CALIBRATION_PATCHES))
        require("onnx").checker.check_model(str(exported), full_check=True)
        description = describe(model, checkpoint, exported, options.precision, OPSET)
        say("comparing with PyTorch")
        written = OnnxModel(exported, description)
        runtime = open_backend("onnxruntime", written)
        report = OnnxReport(output, model.folds, _compare(network, runtime, predictor, cases, channels))
        _refuse_if_different(report.differences, options.precision, output)
        if scored:
            say("predicting for the Dice cost")
            report.dice, report.dice_cases = _dice(predictor, written, runtime, scored, options, workspace)
        description["checked"] = {kind: str(difference) for kind, difference in report.differences.items()}
        # the JSON last: alone it would describe a file that is not there
        os.replace(exported, output)
        write_atomically(json_path(output), lambda file: file.write(dump(description)))
    return report


def refuse_unknown_surroundings(model: ModelFolder, checkpoint: Mapping[str, Any]) -> None:
    """What surrounds the network must be what nnunet-kd-runtime reproduces.

    Raises:
        ModelError: it names what is not.
    """
    runtime = require("nnunet_kd_runtime.description")
    configuration = trained_configuration(checkpoint)
    description = {
        **surroundings(model.plans(), model.dataset_json(), configuration),
        "onnx": {"input": INPUT, "output": OUTPUT},
        "mirror_axes": [],
    }
    try:
        runtime.understand(description, model.folder / "plans.onnx")
    except require("nnunet_kd_runtime.errors").ModelError as error:
        raise ModelError(
            f"{error} Such a model cannot be exported to ONNX; --to nnunet keeps it for nnU-Net itself."
        ) from error


def write_network(network: nn.Module, channels: int, patch_size: Sequence[int], path: Path) -> None:
    """``image (batch, channels, *patch)`` to ``logits``, batch of any size; the patch is fixed.

    Raises:
        ModelError: PyTorch's exporter cannot express the network, or the file would be too large.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if size > LARGEST_BYTES:
        raise ModelError(
            f"the network has {size / 1e9:.1f} GB of weights, an ONNX file holds less than 2. Export one fold: -f 0."
        )
    image = torch.zeros(2, channels, *patch_size)  # of one, the exporter would conclude that it is always one
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (image,),
                str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ModelError(f"PyTorch cannot export this network to ONNX: {str(error).strip().splitlines()[0]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    _forget_origin(path)


def _forget_origin(path: Path) -> None:
    """Take out the exporter's notes, which hold source lines and folders of this machine."""
    onnx = require("onnx")
    network = onnx.load(str(path))
    graph = network.graph
    for part in (network, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save(network, str(path))


def _network(predictor: CasePredictor, model: ModelFolder) -> nn.Module:
    networks = []
    for weights in predictor.list_of_parameters:
        network = deepcopy(predictor.network)
        network.load_state_dict(weights)
        networks.append(network.eval().requires_grad_(False))
    return networks[0] if len(model.folds) == 1 else FoldAverage(networks).eval()


def _compare(
    network: nn.Module, runtime: Backend, predictor: CasePredictor, cases: list[InputCase], channels: int
) -> dict[str, Difference]:
    size = predictor.configuration_manager.patch_size
    batches = chain(random_patches(channels, size, 1), random_patches(channels, size, 1, batch=2))
    differences = {"random": compare_logits(network, runtime, batches)}
    if cases:
        differences["real"] = compare_logits(network, runtime, image_patches(predictor, cases, CHECKED_PATCHES))
    return differences


def _refuse_if_different(differences: Mapping[str, Difference], precision: str, output: Path) -> None:
    for kind, difference in differences.items():
        if not difference.acceptable(precision):
            raise ModelError(
                f"the exported network differs from PyTorch's beyond what {precision} allows ({kind} {difference}), so "
                f"{output} was not written. Please report this with the model's plans.json; stock nnU-Net's format "
                f"(--to nnunet) is exact."
            )


def _dice(
    predictor: CasePredictor,
    written: OnnxModel,
    runtime: Backend,
    cases: list[InputCase],
    options: OnnxOptions,
    workspace: Path,
) -> tuple[dict[str, dict[str, float]], int]:
    assert options.references is not None
    exported = CasePredictor(torch.device("cpu"))
    exported.initialize_from_onnx(written, runtime)
    predictors = {"torch": predictor, "exported": exported}
    return dice_by_label(predictors, cases, options.references, workspace), len(cases)


@contextlib.contextmanager
def _status() -> Any:
    console = Console(stderr=True)
    with console.status("") as status:
        say: Callable[[str], None] = status.update
        yield say
