"""Networks to profile, from whatever they were saved as: a model folder, an exported zip, a plan, an ONNX file."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.errors import PlanError
from nnunet_kd.model_folder import ModelFolder, load_predictor
from nnunet_kd.onnx_network import OnnxNetwork

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
WHAT_IS_READ = "Give a model folder, an exported zip, a plan (*.json) or an ONNX file."


@dataclass(frozen=True)
class ModelSource:
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


def open_model(
    path: Path, configuration: str | None = None, fold: str | None = None, dataset_json: Path | None = None
) -> ModelSource:
    """Read a network.

    Args:
        path: a model folder, a zip of ``nnUNetv2_export_model_to_zip``, a plan, or an ONNX file.
        configuration: of a plan, or of a zip with several; default: the only one, or ``3d_fullres``.
        fold: of a model folder or zip; default: the first one.
        dataset_json: of a plan; default: the one beside it.

    Raises:
        PlanError: nothing of that kind is there, or it cannot be built.
        ModelError: a checkpoint is damaged or of another network.
        MissingRequirement: an ONNX file without onnx and onnxruntime.
    """
    if path.is_dir():
        return _from_model_folder(path, fold)
    if not path.is_file():
        raise PlanError(f"{path} does not exist. {WHAT_IS_READ}")
    if path.suffix == ".zip":
        return _from_zip(path, configuration, fold)
    if path.suffix == ".json":
        return _from_plan(path, configuration, dataset_json)
    if path.suffix == ".onnx":
        return _from_onnx(path)
    raise PlanError(f"{path} is of an unknown kind. {WHAT_IS_READ}")


def find_checkpoint(model_folder: Path, fold: str | None = None) -> Path:
    """The checkpoint of a fold: the final one, else the best, else the latest.

    Args:
        model_folder: holds ``plans.json`` and ``fold_X``.
        fold: ``X``; default: the first fold that has a checkpoint.

    Raises:
        PlanError: no plans.json, or no checkpoint; names what is there.
    """
    if not (model_folder / "plans.json").is_file():
        raise PlanError(f"{model_folder} has no plans.json, so it is no nnU-Net model folder. {WHAT_IS_READ}")
    folds = sorted(path.name for path in model_folder.glob("fold_*"))
    for name in folds if fold is None else [f"fold_{fold}"]:
        for checkpoint in CHECKPOINTS:
            if (model_folder / name / checkpoint).is_file():
                return model_folder / name / checkpoint
    wanted = "any fold" if fold is None else f"fold_{fold}"
    raise PlanError(
        f"{model_folder} has no checkpoint in {wanted} (folds there: {', '.join(folds) or 'none'}). "
        f"Train it first, choose another --fold, or give its plan instead."
    )


def new_predictor(mirroring: bool = False, device: str = "cpu") -> nnUNetPredictor:
    """nnU-Net's predictor with its own defaults, quiet."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a note about CUDA on every other device
        return nnUNetPredictor(
            use_mirroring=mirroring,
            perform_everything_on_device=device != "cpu",
            device=torch.device(device),
            verbose=False,
            verbose_preprocessing=False,
            allow_tqdm=False,
        )


def _from_model_folder(folder: Path, fold: str | None, origin: Path | None = None) -> ModelSource:
    checkpoint = find_checkpoint(folder, fold)
    predictor = new_predictor()
    model = ModelFolder(folder, (checkpoint.parent.name.removeprefix("fold_"),), checkpoint.name)
    model.dataset_json()
    load_predictor(model, predictor)
    return _with_predictor(origin or folder, predictor, (origin or checkpoint).stat().st_size)


def _from_zip(path: Path, configuration: str | None, fold: str | None) -> ModelSource:
    """Unpack what is needed to names of our own: an archive's names may lead anywhere."""
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="nnunet_kd_") as temporary:
            names = archive.namelist()
            models = sorted(name.removesuffix("/plans.json") for name in names if name.endswith("/plans.json"))
            chosen = [name for name in models if configuration is None or name.endswith(f"__{configuration}")]
            if len(chosen) != 1:
                raise PlanError(
                    f"{path} holds {len(chosen)} models{f' of {configuration}' if configuration else ''}, but one is "
                    f"needed ({', '.join(models) or 'none there'}). Choose with --configuration."
                )
            folder = Path(temporary) / Path(chosen[0]).name
            for name in names:
                inside = name.removeprefix(f"{chosen[0]}/")
                parts = inside.split("/")
                wanted = inside in ("plans.json", "dataset.json") or (
                    len(parts) == 2 and parts[0].startswith("fold_") and parts[1] in CHECKPOINTS
                )
                if name != inside and wanted:
                    target = folder.joinpath(*parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
            return _from_model_folder(folder, fold, origin=path)
    except zipfile.BadZipFile as error:
        raise PlanError(f"{path} is no readable zip file ({error}). Export the model again.") from error


def _from_plan(path: Path, configuration: str | None, dataset_json: Path | None) -> ModelSource:
    beside = dataset_json or path.parent / "dataset.json"
    try:
        plans, dataset = json.loads(path.read_text()), json.loads(beside.read_text())
        manager = PlansManager(plans)
        configurations = manager.available_configurations
    except FileNotFoundError as error:
        raise PlanError(
            f"{path} needs the dataset.json it was made for; {beside} is missing. Give --dataset-json."
        ) from error
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
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
        network = get_network_from_plans(
            chosen.network_arch_class_name,
            chosen.network_arch_init_kwargs,
            chosen.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, chosen, dataset),
            manager.get_label_manager(dataset).num_segmentation_heads,
            deep_supervision=False,
        )
    except Exception as error:  # whatever a wrong architecture makes torch raise
        raise PlanError(
            f"the network of {path}, {name}, cannot be built: {error}. Correct its architecture."
        ) from error
    axes = tuple(range(len(chosen.patch_size)))
    predictor = new_predictor()
    predictor.manual_initialization(network, manager, chosen, None, dataset, "nnUNetTrainer", axes)
    return _with_predictor(path, predictor, None)


def _with_predictor(path: Path, predictor: nnUNetPredictor, file_bytes: int | None) -> ModelSource:
    configuration = predictor.configuration_manager
    network = predictor.network.eval()
    median = configuration.configuration.get("median_image_size_in_voxels")
    return ModelSource(
        path=path,
        network=network,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        input_channels=determine_num_input_channels(predictor.plans_manager, configuration, predictor.dataset_json),
        patch_size=tuple(int(size) for size in configuration.patch_size),
        volume_shape=None if median is None else tuple(round(size) for size in median),
        mirror_axes=tuple(predictor.allowed_mirroring_axes or ()),
        file_bytes=file_bytes,
        predictor=predictor,
    )


def _from_onnx(path: Path) -> ModelSource:
    network = OnnxNetwork(path)
    return ModelSource(
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
