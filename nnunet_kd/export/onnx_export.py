"""An nnU-Net's network as ONNX, checked against PyTorch before it gets its name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from nnunet_kd.errors import ModelError, SettingsError
from nnunet_kd.export.comparison import OutputDifference, compare_logits, dice_by_label, matching_references
from nnunet_kd.export.onnx_network import OPSET, FoldAverage, write_network
from nnunet_kd.export.patches import image_patches, random_patches
from nnunet_kd.export.quantisation import CALIBRATION_PATCHES, to_float16, to_int8
from nnunet_kd.export.weights import check_weights
from nnunet_kd.inference.cases import InputCase, find_cases
from nnunet_kd.inference.onnx_metadata import INPUT, OUTPUT, OnnxModel, describe, dump, json_path, surroundings
from nnunet_kd.inference.predictor import CasePredictor
from nnunet_kd.inference.runtime_network import open_backend
from nnunet_kd.models.folder import ModelFolder, load_predictor
from nnunet_kd.nnunet.checkpoints import trained_configuration
from nnunet_kd.nnunet.environment import variables_set_to
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import folder_beside, write_atomically
from nnunet_kd.system.requirements import EXTRAS, require

if TYPE_CHECKING:  # it is optional
    from nnunet_kd_runtime.backends import Backend

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
    differences: dict[str, OutputDifference]
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
    with variables_set_to({"nnUNet_compile": "f"}):  # what is written is the network as it is
        load_predictor(model, predictor)
    if options.images and (first := predictor.configuration_manager.previous_stage_name) is not None:
        raise SettingsError(
            f"-i: the model is the second stage of a cascade, and its inputs also hold what {first} segmented, which cannot be "
            f"given here. Leave -i out, and with it --int8 and --references; nnunet-kd conform compares on images."
        )
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
        try:
            differences = _compare(network, runtime, predictor, cases, channels)
        except require("nnunet_kd_runtime.errors").ModelError as error:
            raise ModelError(
                f"ONNX Runtime cannot use what PyTorch {torch.__version__} wrote of this network. Update PyTorch, whose exporter "
                f"wrote it, or onnxruntime. --to nnunet works without both. ({error})"
            ) from error
        report = OnnxReport(output, model.folds, differences)
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


def _network(predictor: CasePredictor, model: ModelFolder) -> nn.Module:
    networks = []
    for weights in predictor.list_of_parameters:
        network = deepcopy(predictor.network)
        network.load_state_dict(weights)
        networks.append(network.eval().requires_grad_(False))
    return networks[0] if len(model.folds) == 1 else FoldAverage(networks).eval()


def _compare(
    network: nn.Module, runtime: Backend, predictor: CasePredictor, cases: list[InputCase], channels: int
) -> dict[str, OutputDifference]:
    size = predictor.configuration_manager.patch_size
    batches = chain(random_patches(channels, size, 1), random_patches(channels, size, 1, batch=2))
    differences = {"random": compare_logits(network, runtime, batches)}
    if cases:
        differences["real"] = compare_logits(network, runtime, image_patches(predictor, cases, CHECKED_PATCHES))
    return differences


def _refuse_if_different(differences: Mapping[str, OutputDifference], precision: str, output: Path) -> None:
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
