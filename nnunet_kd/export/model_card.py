"""The model card: what a shared model is, how to use it, how it was trained, what it reached."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import nnunet_kd
from nnunet_kd.errors import PlanError
from nnunet_kd.export.weights import is_average
from nnunet_kd.models.checkpoint import ENTRY
from nnunet_kd.models.folder import ModelFolder
from nnunet_kd.models.plans import provenance
from nnunet_kd.nnunet.checkpoints import EPOCH, FINAL, TRAINER, WEIGHTS
from nnunet_kd.nnunet.environment import channel_names


@dataclass
class FoldSummary:
    """What the card says about one fold.

    Attributes:
        fold: a number or ``all``.
        trainer: name of the trainer it was trained with.
        epochs: epochs trained.
        parameters: number of weights.
        settings: the distillation's settings; empty for models not trained with this package.
        averaged: whether the weights are an exponential moving average.
        dice: mean Dice of the fold's validation by label or region, as nnU-Net wrote it.
        cases: validation cases behind it.
    """

    fold: str
    trainer: str
    epochs: int
    parameters: int
    settings: dict[str, Any]
    averaged: bool
    dice: dict[str, float] = field(default_factory=dict)
    cases: int = 0


def summarise_fold(fold: str, checkpoint: Mapping[str, Any], validation: Mapping[str, Any] | None) -> FoldSummary:
    """Gather a fold's line of the card.

    Args:
        fold: a number or ``all``.
        checkpoint: as trained, with this package's entry if it has one.
        validation: nnU-Net's ``summary.json``; ``None`` if the fold was not validated.
    """
    entry = checkpoint.get(ENTRY, {})
    weights = checkpoint[WEIGHTS]
    shared = {weight.data_ptr(): weight.numel() for weight in weights.values()}  # nnU-Net lists some weights twice
    means = validation["mean"] if validation else {}
    return FoldSummary(
        fold=fold,
        trainer=str(checkpoint[TRAINER]),
        epochs=int(checkpoint.get(EPOCH, 0)),
        parameters=sum(shared.values()),
        settings=shareable_settings(entry.get("settings", {})),
        averaged=is_average(checkpoint),
        dice={str(label): float(values["Dice"]) for label, values in means.items()},
        cases=len(validation["metric_per_case"]) if validation else 0,
    )


def shareable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without folders of the machine they were used on: teachers, first weights and soft labels keep their names.

    Their SHA-256 says which they were.
    """
    found: dict[str, Any] = dict(settings)
    if "teacher" in found:
        several = isinstance(found["teacher"], list)
        found["teacher"] = (
            [_named_teacher(one) for one in found["teacher"]] if several else _named_teacher(found["teacher"])
        )
    if found.get("start"):
        found["start"] = _name(found["start"])
    soft = (found.get("objectives") or {}).get("soft")
    if soft and soft.get("maps"):
        found["objectives"] = {**found["objectives"], "soft": {**soft, "maps": _name(soft["maps"])}}
    return found


def _named_teacher(teacher: Any) -> Any:
    """A path, or settings that may hold one."""
    if isinstance(teacher, Mapping):
        return {**teacher, "path": _name(teacher["path"])} if teacher.get("path") else teacher
    return _name(teacher) if isinstance(teacher, str) else teacher


def _when(folds: Sequence[FoldSummary]) -> str:
    trained = any(fold.epochs for fold in folds)
    return "after training, of the last epoch's weights" if trained else "before any training"


def _name(path: object) -> str:
    return Path(str(path)).name


def write_card(
    model: ModelFolder, configuration: str, folds: list[FoldSummary], weights: str, licence: str, install_name: str
) -> str:
    """The card's Markdown.

    Args:
        model: what is exported.
        configuration: its name.
        folds: one summary each.
        weights: final, best, ema, or what else the checkpoint is called.
        licence: of the weights; ``""``: what ``dataset.json`` says of the data is passed on as such.
        install_name: ``Dataset.../Trainer__Plans__configuration``.
    """
    plans, dataset_json = model.plans(), model.dataset_json()
    dataset, folder = install_name.split("/")
    trainer, plans_name, _ = folder.split("__")
    data_licence = str(dataset_json.get("licence") or dataset_json.get("license") or "not stated in dataset.json")
    numbers = " ".join(fold.fold for fold in folds)
    checkpoint = f" -chk {model.checkpoint}" if model.checkpoint != FINAL else ""
    predict = ["nnUNetv2_predict", "-d", dataset, "-c", configuration, "-tr", trainer, "-p", plans_name]
    description = str(dataset_json.get("description") or "")
    lines = [
        "---",
        f"license: {_yaml(licence or 'unknown')}",
        "library_name: nnunetv2",
        "tags: [medical-image-segmentation, nnunet]",
        "---",
        "",
        f"# {dataset}, {configuration}",
        "",
        *([description, ""] if description else []),
        "## Use",
        "",
        "With nnU-Net v2 alone; the package that trained it is not needed. Of the archive:",
        "",
        "```bash",
        "nnUNetv2_install_pretrained_model_from_zip MODEL.zip",
        f"{shlex.join(predict)} -f {numbers}{checkpoint} -i IN -o OUT",
        "```",
        "",
        f"Of the folder: `nnUNetv2_predict_from_modelfolder -m FOLDER -f {numbers}{checkpoint} -i IN -o OUT`.",
        "",
        "## Data",
        "",
        f"- input channels, in this order: {_listed(dict(enumerate(channel_names(dataset_json))))}",
        f"- labels: {_listed(dataset_json['labels'])}",
        f"- file ending: `{dataset_json['file_ending']}`",
        f"- licence of the data, as `dataset.json` says: {data_licence}",
        f"- licence of these weights: {licence or 'not stated by who exported them'}",
        "",
        "## Training",
        "",
        "| fold | trainer | epochs | parameters | weights | validation cases | mean Dice | by label |",
        "|-|-|-|-|-|-|-|-|",
        *(_row(fold, weights) for fold in folds),
        "",
        f"Dice is nnU-Net's validation of the fold {_when(folds)} (`validation/summary.json`).",
    ]
    reduced = _provenance(plans, configuration)
    if reduced:
        lines += [
            "",
            f"The network is a student: the channels of its teacher's plan {reduced['teacher_plans_name']} "
            f"({reduced['teacher_features_per_stage']}) divided by {reduced['reduction']:g}.",
        ]
    for fold in folds:
        if fold.settings:
            text = yaml.safe_dump(fold.settings, sort_keys=False).rstrip()
            lines += ["", f"Settings of fold {fold.fold}:", "", "```yaml", text, "```"]
    lines += ["", f"Exported by nnunet-kd {nnunet_kd.__version__}.", ""]
    return "\n".join(lines)


def _provenance(plans: Mapping[str, Any], configuration: str) -> dict[str, Any] | None:
    try:
        return provenance(plans, configuration)
    except PlanError:
        return None


def _row(fold: FoldSummary, weights: str) -> str:
    finite = {label: value for label, value in fold.dice.items() if not math.isnan(value)}
    mean = f"{sum(finite.values()) / len(finite):.4f}" if finite else "not validated"
    by_label = ", ".join(f"{label}: {value:.4f}" for label, value in fold.dice.items())
    kind = f"{weights}, moving average" if fold.averaged else weights
    return f"| {fold.fold} | {fold.trainer} | {fold.epochs} | {fold.parameters} | {kind} | {fold.cases} | {mean} | {by_label} |"


def _listed(names: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in names.items())


def _yaml(value: str) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).splitlines()[0]
