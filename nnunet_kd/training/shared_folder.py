"""The folds of a trainer share one folder, with one ``plans.json`` that every prediction reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import join
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.errors import CheckpointError, PlanError
from nnunet_kd.models.checkpoint import read_checkpoint
from nnunet_kd.models.folder import FURTHEST_FIRST
from nnunet_kd.models.plans import provenance
from nnunet_kd.nnunet.checkpoints import INIT_ARGUMENTS, trained_plans
from nnunet_kd.nnunet.environment import channel_names, dataset_number

_DECISIVE = ("architecture", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm")
"""Of a configuration: what a fold's weights cannot do without."""


def refuse_other_networks(
    folder: Path,
    fold: str,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    saves: bool = True,
) -> None:
    """Check that a training leaves the other folds of its folder usable, whose ``plans.json`` it replaces.

    Args:
        folder: the model folder.
        fold: to be trained; what is there of it may be replaced.
        plans, configuration, dataset_json: of the training.
        saves: whether it writes checkpoints. One that does not (``--disable_checkpointing``) replaces nothing, so that its own
            fold's must stay usable, too.

    Raises:
        PlanError: another fold has another network or was given other numbers; says how to train under a name of its own.
    """
    own = _decisive(plans, configuration, dataset_json)
    if _beside(folder, configuration) == own:
        return  # nothing would change
    for other, checkpoint in _trained_folds(folder, fold if saves else None):
        trained = _decisive(trained_plans(checkpoint), configuration, checkpoint[INIT_ARGUMENTS]["dataset_json"])
        differing = [key for key in own if own[key] != trained.get(key)]
        if differing:
            raise PlanError(
                f"{folder} holds fold {other}, which was trained with another {', '.join(differing)}"
                f"{_reductions(trained_plans(checkpoint), plans, configuration)}. All folds of a folder share its plans.json, so "
                f"this training would make that fold unusable, also for nnU-Net. Nothing was written. "
                f"{_way_out(folder, fold, plans, configuration)}"
            )


def _decisive(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    resolved = PlansManager(dict(plans)).get_configuration(configuration).configuration
    found = {
        **{key: resolved.get(key) for key in _DECISIVE},
        "transpose_forward": plans.get("transpose_forward"),
        "labels": dataset_json.get("labels"),
        "number of channels": len(channel_names(dataset_json)),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # as it is read from a file
    return plain


def _beside(folder: Path, configuration: str) -> dict[str, Any] | None:
    """What the folder's own plan and ``dataset.json`` say; ``None`` where they do not hold."""
    try:
        plans, dataset_json = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("plans.json", "dataset.json")
        )
        return _decisive(plans, configuration, dataset_json)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _trained_folds(folder: Path, without: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and checkpoint of every fold, but one, that has a readable one."""
    for other in sorted(folder.glob("fold_*")):
        for name in FURTHEST_FIRST if other.name != f"fold_{without}" else ():
            if (other / name).is_file():
                try:
                    checkpoint = read_checkpoint(other / name, in_memory=False)
                except CheckpointError:
                    continue
                if INIT_ARGUMENTS in checkpoint:
                    yield other.name.removeprefix("fold_"), checkpoint
                    break


def _reductions(trained: Mapping[str, Any], plans: Mapping[str, Any], configuration: str) -> str:
    theirs, own = (provenance(each, configuration) for each in (trained, plans))
    if theirs is None or own is None or theirs["reduction"] == own["reduction"]:
        return ""
    return f" (reduction={theirs['reduction']:g}; this training has {own['reduction']:g})"


def _way_out(folder: Path, fold: str, plans: Mapping[str, Any], configuration: str) -> str:
    number = dataset_number(plans["dataset_name"])
    trainer, name = folder.name.split("__")[0], plans["plans_name"]
    block = provenance(plans, configuration)
    reduction = f"{block['reduction']:g}" if block else "1"
    student = f"{name}_r{reduction}"
    train = join(["nnUNetv2_train", number, configuration, fold, "-tr", trainer, "-p", student])
    if block and not name.endswith(f"_r{reduction}"):
        made = join(["nnunet-kd", "plan", number, "-p", name, "-r", reduction])
        return f"Give this training a plan, and so a folder, of its own: {made} && {train}"
    return "Give the plan another name (its file's, and plans_name within), and train with -p NAME: that is a folder of its own."
