"""A student's trainer with a freshly initialised teacher, in a temporary nnU-Net folder: no data needed.

For benchmarks and tests: every part is the real one, from plan and teacher folder to the trainer's own step.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_kd.distillation.settings import Settings, validate_settings
from nnunet_kd.distillation.settings_sources import CONFIG_VARIABLE, SET_VARIABLE
from nnunet_kd.distillation.starts.student import RANDOM
from nnunet_kd.errors import SettingsError
from nnunet_kd.models.folder import ModelFolder, read_json
from nnunet_kd.models.plans import provenance, read_plans
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.nnunet.environment import STOCK_TRAINER, find_trainer, variables_set_to
from nnunet_kd.nnunet.training import deep_supervision_scales
from nnunet_kd.system.shipped import shipped_folder
from nnunet_kd.training.soft_label_loader import KEY

DATASET_JSON: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "anterior": 1, "posterior": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
_BRATS2024 = {
    **DATASET_JSON,
    "channel_names": {"0": "T1N", "1": "T1C", "2": "T2W", "3": "T2F"},
    "labels": {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
}
HIPPOCAMPUS, BRATS2024 = "hippocampus", "brats2024"
SHIPPED_SHAPES = {HIPPOCAMPUS: DATASET_JSON, BRATS2024: _BRATS2024}
CONFIGURATION = "3d_fullres"
PLANS_FILE, DATASET_FILE = "plans.json", "dataset.json"


class Shape:
    """A plan to measure at, in one of its configurations.

    Attributes:
        name: of a shipped reference plan (:data:`SHIPPED_SHAPES`), or the folder.
        plans: the plan.
        dataset_json: a dataset description that fits it.
        configuration_name: a model folder's own; ``3d_fullres`` of shipped plans, and where a folder does not say.

    Args:
        name: the same; a folder has ``plans.json`` and ``dataset.json``, as every model folder.

    Raises:
        SettingsError: it is neither; or it is a student's, the second stage of a cascade, or does not say which configuration it
            is of.
        PlanError, ModelError: a file in the folder does not hold.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        shipped, folder = SHIPPED_SHAPES.get(name), Path(name)
        if shipped is None and not all((folder / file).is_file() for file in (PLANS_FILE, DATASET_FILE)):
            raise SettingsError(
                f"there is no shape {name!r}; there are {', '.join(SHIPPED_SHAPES)}, and every folder with {PLANS_FILE} and "
                f"{DATASET_FILE}, such as a model folder."
            )
        path = folder / PLANS_FILE if shipped is None else shipped_folder("plans") / "reference" / f"{name}.json"
        self.plans = read_plans(path)
        self.configuration_name = _configuration_of(folder, self.plans) if shipped is None else CONFIGURATION
        if provenance(self.plans, self.configuration_name) is not None:
            raise SettingsError(
                f"{folder} is a student's model. Students are measured beside their teacher: give that one."
            )
        if self._manager().previous_stage_name is not None:
            raise SettingsError(
                f"{folder} is the second stage of a cascade, whose input a first stage makes. That is not measured: give a model "
                f"of another configuration."
            )
        self.dataset_json = shipped or read_json(folder / DATASET_FILE, "the model's dataset.json", "Copy it there.")

    @property
    def configuration(self) -> dict[str, Any]:
        """What the plan says of the configuration."""
        found: dict[str, Any] = self._manager().configuration
        return found

    def _manager(self) -> ConfigurationManager:
        return PlansManager(self.plans).get_configuration(self.configuration_name)

    def __str__(self) -> str:
        return self.name


def _configuration_of(folder: Path, plans: Mapping[str, Any]) -> str:
    """A model folder's own configuration: its name says it, else its checkpoints, else the plan that has one alone."""
    known = plans["configurations"]
    *model, last = folder.resolve().name.split("__")
    if len(model) == 2 and last in known:
        return last
    if checkpoint := next(iter(sorted(folder.glob("fold_*/checkpoint_*.pth"))), None):
        fold = checkpoint.parent.name.removeprefix("fold_")
        return ModelFolder(folder, (fold,), checkpoint.name).configuration()
    if len(known) == 1:
        return str(next(iter(known)))
    if CONFIGURATION not in known:
        raise SettingsError(
            f"{folder} does not say which configuration of its plan is meant: {', '.join(known)}. Give a model folder under the "
            f"name that nnU-Net gave it, TRAINER__PLANS__CONFIGURATION."
        )
    return CONFIGURATION


@contextlib.contextmanager
def nnunet_folders(root: Path) -> Iterator[None]:
    """nnU-Net's three variables under ``root``, and no settings from the caller's environment."""
    names = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    with variables_set_to({**names, CONFIG_VARIABLE: None, SET_VARIABLE: None}):
        for name in names.values():
            Path(name).mkdir(parents=True, exist_ok=True)
        yield


def write_preprocessed(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str) -> Path:
    """The files of a preprocessed dataset that trainers read before any case."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / str(plans["dataset_name"])
    cases = folder / f"{plans['plans_name']}_{configuration}"
    cases.mkdir(parents=True, exist_ok=True)
    (cases / "case.b2nd").touch()
    (cases / "case.pkl").touch()
    (folder / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans), encoding="utf-8")
    return folder


def make_trainer(
    name: str,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    device: torch.device,
    fold: int = 0,
    continue_training: bool = False,
) -> Any:
    """A trainer as nnU-Net itself makes it, told nothing on the console."""
    own = json.loads(json.dumps(plans))
    own["continue_training"] = continue_training
    with contextlib.redirect_stdout(io.StringIO()):
        kind = _trainer_class(name, os.environ.get("nnUNet_extTrainer"))
        trainer = kind(own, configuration, fold, json.loads(json.dumps(dataset_json)), device)
    if isinstance(getattr(trainer, "settings", None), Settings):
        trainer.settings = without_start(trainer.settings)
        trainer.maps_in_batches = True
    return trainer


@cache
def _trainer_class(name: str, searched: str | None) -> type[Any]:
    """nnU-Net searches all its modules in every call, which takes longer than a step of a small network."""
    return find_trainer(name)


def without_start(settings: Settings) -> Settings:
    """The same with weights and projections that start at random: there are no training cases to fit them to."""
    values = settings.as_dict()
    for objective in values["objectives"].values():
        if "projection_start" in objective:
            objective["projection_start"] = "random"
    return validate_settings({**values, "start": RANDOM}, "settings without a start")


def write_untrained_teacher(
    plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any], seed: int = 0
) -> Path:
    """The dataset's files, and a complete model folder of a stock nnU-Net with random weights; returns the latter."""
    write_preprocessed(plans, dataset_json, configuration)
    teacher: nnUNetTrainer = make_trainer(STOCK_TRAINER, plans, configuration, dataset_json, torch.device("cpu"))
    folder = Path(teacher.output_folder_base)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(seed)
        teacher.initialize()
        teacher.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # a trained one knows what it mirrored
        teacher.save_checkpoint(str(folder / "fold_0" / FINAL))
    (folder / PLANS_FILE).write_text(json.dumps(plans), encoding="utf-8")
    (folder / DATASET_FILE).write_text(json.dumps(dataset_json), encoding="utf-8")
    return folder


def random_batch(trainer: nnUNetTrainer, seed: int = 0) -> dict[str, Any]:
    """A batch as nnU-Net's loader gives it: images, and targets at every deep-supervision scale."""
    generator = torch.Generator().manual_seed(seed)
    patch = trainer.configuration_manager.patch_size
    batch = trainer.configuration_manager.batch_size
    data = torch.randn(batch, trainer.num_input_channels, *patch, generator=generator)
    manager = trainer.label_manager
    targets = []
    for scale in deep_supervision_scales(trainer):
        shape = [round(size * factor) for size, factor in zip(patch, scale, strict=True)]
        if manager.has_regions:
            channels = len(manager.foreground_regions) + int(manager.has_ignore_label)
            targets.append((torch.rand(batch, channels, *shape, generator=generator) < 0.3).float())
        else:
            highest = max(manager.all_labels) + 1 + int(manager.has_ignore_label)
            targets.append(torch.randint(0, highest, (batch, 1, *shape), generator=generator).float())
    made = {"data": data, "target": targets if trainer.enable_deep_supervision else targets[0]}
    if getattr(trainer, "maps_in_batches", False) and trainer.reads_maps():
        channels = trainer.label_manager.num_segmentation_heads - (0 if manager.has_regions else 1)
        maps = torch.rand(batch, channels, *patch, generator=generator)
        made[KEY] = maps if manager.has_regions else maps / channels
    return made
