"""Networks to profile, from whatever they were saved as: a model folder, an exported zip, a plan, an ONNX file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.errors import ModelError, PlanError
from nnunet_kd.evaluation.costs.onnx_network import OnnxNetwork
from nnunet_kd.models.archive import is_archive
from nnunet_kd.models.folder import load_predictor, new_predictor, open_model
from nnunet_kd.models.plans import inputs_and_heads
from nnunet_kd.nnunet.environment import STOCK_TRAINER
from nnunet_kd.nnunet.networks import network_inputs, planned_network

WHAT_IS_READ = "Give a model folder, an exported zip, a plan (*.json) or an ONNX file."


@dataclass(frozen=True)
class MeasuredNetwork:
    """A network and what is needed to run it over patches and volumes.

    Attributes:
        path: what it was read from.
        network: on the CPU, in evaluation mode, without deep supervision; (1, C, *patch) in, logits out.
        parameters: number of learned values.
        input_channels: C.
        patch_size: voxels.
        volume_shape: median shape of the training images after resampling, voxels; ``None`` if not known.
        mirror_axes: spatial axes over which test-time mirroring is allowed, from 0.
        file_bytes: size of the checkpoint or exported file; ``None`` for a plan.
        predictor: nnU-Net's sliding window around ``network``; ``None`` for ONNX.
    """

    path: Path
    network: nn.Module
    parameters: int
    input_channels: int
    patch_size: tuple[int, ...]
    volume_shape: tuple[int, ...] | None
    mirror_axes: tuple[int, ...]
    file_bytes: int | None
    predictor: nnUNetPredictor | None


def read_network(
    path: Path, configuration: str | None = None, fold: str | None = None, dataset_json: Path | None = None
) -> MeasuredNetwork:
    """Read a network.

    Args:
        path: a model folder, a checkpoint in one, an exported zip, a plan, or an ONNX file.
        configuration: of a plan, or of a zip with several; default: the only one, or ``3d_fullres``.
        fold: of a model folder or zip; default: the first one.
        dataset_json: of a plan; default: the one beside it.

    Raises:
        PlanError: a plan cannot be read or built.
        ModelError: nothing of that kind is there, or no such trained model,
            or its checkpoint is damaged, of another network or not only data.
        MissingRequirement: an ONNX file without onnx and onnxruntime.
    """
    if path.is_dir() or path.suffix in (".zip", ".pth"):
        return _from_trained(path, configuration, fold)
    if not path.is_file():
        raise ModelError(f"{path} does not exist. {WHAT_IS_READ}")
    if path.suffix == ".json":
        return _from_plan(path, configuration, dataset_json)
    if path.suffix == ".onnx":
        return _from_onnx(path)
    raise ModelError(f"{path} is of an unknown kind. {WHAT_IS_READ}")


def _from_trained(path: Path, configuration: str | None, fold: str | None) -> MeasuredNetwork:
    with open_model(path, () if fold is None else (fold,), None, configuration) as found:
        model = replace(found, folds=found.folds[:1])
        predictor = new_predictor()
        load_predictor(model, predictor)
        file = path if is_archive(path) else model.checkpoint_path(model.folds[0])
        return _with_predictor(path, predictor, file.stat().st_size)


def _from_plan(path: Path, configuration: str | None, dataset_json: Path | None) -> MeasuredNetwork:
    beside = dataset_json or path.parent / "dataset.json"
    try:
        plans, dataset = json.loads(path.read_text(encoding="utf-8")), json.loads(beside.read_text(encoding="utf-8"))
        manager = PlansManager(plans)
        configurations = manager.available_configurations
    except FileNotFoundError as error:
        raise PlanError(
            f"{path} needs the dataset.json it was made for; {beside} is missing. Give --dataset-json."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise PlanError(
            f"{path} is no nnU-Net plan, or {beside} no dataset.json ({error!r}). {WHAT_IS_READ}"
        ) from error
    name = configuration or (configurations[0] if len(configurations) == 1 else "3d_fullres")
    if name not in configurations:
        raise PlanError(
            f"{path} has no configuration {name!r} (it has {', '.join(configurations)}). Use --configuration."
        )
    chosen = manager.get_configuration(name)
    try:
        network = planned_network(chosen, *inputs_and_heads(plans, name, dataset))
    except Exception as error:  # whatever a wrong architecture makes torch raise
        raise PlanError(
            f"the network of {path}, {name}, cannot be built: {error}. Correct its architecture."
        ) from error
    axes = tuple(range(len(chosen.patch_size)))
    predictor = new_predictor()
    predictor.manual_initialization(network, manager, chosen, None, dataset, STOCK_TRAINER, axes)
    return _with_predictor(path, predictor, None)


def _with_predictor(path: Path, predictor: nnUNetPredictor, file_bytes: int | None) -> MeasuredNetwork:
    configuration = predictor.configuration_manager
    network = predictor.network.eval()
    median = configuration.configuration.get("median_image_size_in_voxels")
    if median is not None and len(median) == 2:  # of a 2D plan: of one slice, and slices are not resampled across
        whole = predictor.plans_manager.plans.get("original_median_shape_after_transp")
        median = None if whole is None else [whole[0], *median]
    return MeasuredNetwork(
        path=path,
        network=network,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        input_channels=network_inputs(predictor.plans_manager, configuration, predictor.dataset_json),
        patch_size=tuple(int(size) for size in configuration.patch_size),
        volume_shape=None if median is None else tuple(round(size) for size in median),
        mirror_axes=tuple(predictor.allowed_mirroring_axes or ()),
        file_bytes=file_bytes,
        predictor=predictor,
    )


def _from_onnx(path: Path) -> MeasuredNetwork:
    network = OnnxNetwork(path)
    return MeasuredNetwork(
        path=path,
        network=network,
        parameters=network.parameters_count,
        input_channels=network.input_channels,
        patch_size=network.patch_size,
        volume_shape=None,
        mirror_axes=network.mirror_axes,
        file_bytes=network.file_bytes,
        predictor=None,
    )
