"""Which model is shrunk: found, looked at as data, and refused by name where it cannot be."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import MissingRequirement, ModelError, NnunetKdError
from nnunet_kd.export.onnx_export import refuse_unknown_surroundings
from nnunet_kd.models.archive import is_archive, unpack_model
from nnunet_kd.models.folder import ModelFolder, open_model
from nnunet_kd.models.plans import provenance, reduce_plans
from nnunet_kd.models.training_cases import known_training_cases
from nnunet_kd.nnunet.checkpoints import INIT_ARGUMENTS
from nnunet_kd.system.files import sha256
from nnunet_kd.system.requirements import EXTRAS, require
from nnunet_kd.volumes.reading import dataset_reader
from nnunet_kd.workflows.shrink.request import Places

_PLAN = "plans.json"


@dataclass(frozen=True)
class Teacher:
    """The model that is shrunk.

    Attributes:
        model: its folder, on disk for as long as the work takes.
        configuration: that it was trained with.
        digests: SHA-256 of every fold's checkpoint.
        trained_on: training cases by fold, as far as they are known.
        without_onnx: why no ONNX file can be written; ``None``: one can.
    """

    model: ModelFolder
    configuration: str
    digests: Mapping[str, str]
    trained_on: Mapping[str, Sequence[str]]
    without_onnx: str | None

    @property
    def plans(self) -> dict[str, Any]:
        """Its plan."""
        return self.model.plans()

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Its dataset's description."""
        return self.model.dataset_json()

    @property
    def dataset(self) -> str:
        """Its dataset's name, under which the student is installed beside it."""
        return str(self.plans["dataset_name"])

    @property
    def reader(self) -> BaseReaderWriter:
        """The plan's."""
        return dataset_reader(self.dataset_json, self.plans)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Of its network."""
        return tuple(PlansManager(self.plans).get_configuration(self.configuration).patch_size)


def find_teacher(path: Path, configuration: str | None, reduction: float, trusted: bool, places: Places) -> Teacher:
    """The model at a path, which is a zip, a model folder, or a dataset's folder of several.

    Args:
        path: of the model.
        configuration: which, where there are several; ``None``: the only one.
        reduction: of the student's channels.
        trusted: read checkpoints that hold more than data.
        places: an archive is unpacked there.

    Raises:
        ModelError, PlanError: there is no such model, there are several, or it cannot be shrunk; names it.
    """
    path = path.expanduser()
    if not path.exists():
        raise ModelError(f"the model {path} does not exist. Give an exported zip or a model folder.")
    if path.suffix.lower() == ".onnx":
        raise ModelError(
            f"{path} is a network without its training plan. Give the zip or the model folder that it came from."
        )
    models = _models_in(path)
    chosen = _choose(path, models, configuration)
    folder = chosen if isinstance(chosen, Path) else path
    if is_archive(path):
        folder = _unpacked(path, chosen, places.model(sha256(path)))
    with open_model(folder, (), None) as model:  # a folder: nothing is unpacked
        found = ModelFolder(model.folder.resolve(), model.folds, model.checkpoint, path)
    trained = found.configuration(trusted)
    if configuration is not None and trained != configuration:
        raise ModelError(f"{path} holds none of configuration {configuration}, only {trained}. Leave -c out.")
    _check_shrinkable(found, trained, reduction, path)
    return Teacher(
        found,
        trained,
        {fold: sha256(found.checkpoint_path(fold)) for fold in found.folds},
        known_training_cases(found),
        _why_without_onnx(found, trusted),
    )


def _models_in(path: Path) -> dict[str, Path | str]:
    """Models below a path by their folder's name: a folder each, or a place within the archive."""
    if is_archive(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            return {}  # unpacking says what is wrong
        plans = [name.removesuffix(_PLAN).rstrip("/") for name in names if name.split("/")[-1] == _PLAN]
        trained = [
            one for one in plans if any(re.match(rf"{re.escape(one)}/?fold_[^/]+/[^/]+\.pth$", name) for name in names)
        ]
        return {one.split("/")[-1]: one for one in trained}
    if path.is_dir() and not (path / _PLAN).is_file() and not path.name.startswith("fold_"):
        return {
            file.parent.name: file.parent for file in sorted(path.glob(f"*/{_PLAN}")) if any(file.parent.glob("fold_*"))
        }
    return {path.name: path}


def _choose(path: Path, models: Mapping[str, Path | str], configuration: str | None) -> Path | str:
    by_configuration = {name: place for name, place in models.items() if name.endswith(f"__{configuration}")}
    fitting = by_configuration if configuration is not None and len(models) > 1 else models
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    configurations = sorted({name.split("__")[-1] for name in models})
    if not models:
        return path  # opening it says what is missing
    if len(configurations) < len(models):
        raise ModelError(
            f"{path} holds {len(models)} models: {', '.join(models)}. Give the folder of one (of a zip: unpack it first)."
        )
    what = f"none of configuration {configuration}" if configuration is not None else "several configurations"
    raise ModelError(
        f"{path} holds {what}: {', '.join(configurations)}. Choose one with -c, for example -c {configurations[0]}."
    )


def _unpacked(archive: Path, chosen: Path | str, target: Path) -> Path:
    """The model's folder in the work folder; unpacked once a configuration, whole or not at all."""
    name = str(chosen).split("/")[-1]  # of the model's own folder; those around it may have any
    configuration = name.split("__")[-1] if "__" in name else None
    if configuration is not None:
        target = target.with_name(f"{target.name}-{configuration}")
    there = [plan.parent for plan in target.glob(f"*/{_PLAN}")]
    if there:
        return there[0]
    temporary = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        model = unpack_model(archive, temporary, configuration)
        temporary.rename(target)
    except OSError as error:
        raise MissingRequirement(f"{archive} could not be unpacked to {target}: {error.strerror or error}.") from error
    return target / model.name


def _check_shrinkable(model: ModelFolder, configuration: str, reduction: float, path: Path) -> None:
    plans, dataset = model.plans(), model.dataset_json()
    missing = [key for key in ("labels", "file_ending") if key not in dataset]
    if not (dataset.get("channel_names") or dataset.get("modality")):
        missing.append("channel_names")
    if missing:
        raise ModelError(
            f"{path}: its dataset.json lacks {', '.join(missing)}. Put the dataset.json of that training there."
        )
    if configuration not in plans["configurations"]:
        raise ModelError(
            f"{path}: its checkpoint is of configuration {configuration}, which its plans.json does not have. Put the plans.json "
            f"of that training there."
        )
    previous = PlansManager(plans).get_configuration(configuration).previous_stage_name
    if previous is not None:
        others = [name for name in plans["configurations"] if "fullres" in name and "cascade" not in name]
        instead = " or ".join([previous, *others])
        raise ModelError(
            f"{path} is the second stage of a cascade ({configuration}), which needs the segmentations of {previous}. Shrink "
            f"{instead} instead, which work alone."
        )
    made_from = provenance(plans, configuration)
    if made_from is not None:
        raise ModelError(
            f"{path} is a student already (channels divided by {made_from['reduction']:g}). Shrink the model that it was made "
            f"from."
        )
    reduce_plans(plans, reduction, configuration)


def _why_without_onnx(model: ModelFolder, trusted: bool) -> str | None:
    try:
        for module in (name for name, extra in EXTRAS.items() if extra == "onnx"):
            require(module)
        refuse_unknown_surroundings(model, {INIT_ARGUMENTS: {"configuration": model.configuration(trusted)}})
    except NnunetKdError as error:
        return str(error)
    return None
