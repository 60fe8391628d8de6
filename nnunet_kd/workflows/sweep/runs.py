"""From a sweep's description to its runs: where each lies, how it is started, and whether that contradicts what is on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.distillation.objectives.soft import SoftSettings
from nnunet_kd.distillation.settings import Settings, validate_settings
from nnunet_kd.distillation.settings_model import yaml_text
from nnunet_kd.distillation.settings_sources import (
    CONFIG_VARIABLE,
    SET_VARIABLE,
    SETTINGS_FILE,
    is_asked_for,
    merge,
    saved_settings,
)
from nnunet_kd.distillation.starts.student import RANDOM, TEACHER, random_start_refused
from nnunet_kd.errors import SettingsError
from nnunet_kd.evaluation.runs import check_fold
from nnunet_kd.models.plans import planned_reduction, read_plans, reduce_plans
from nnunet_kd.nnunet.environment import (
    dataset_name,
    find_trainer,
    method_trainer,
    preprocessed_dataset,
    required_folder,
)
from nnunet_kd.workflows.sweep.checkpoints import SweepCheckpoints
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant
from nnunet_kd.workflows.sweep.planned_run import PlannedRun
from nnunet_kd.workflows.sweep.record import read_record

NNUNET_EPOCHS = 1000
"""``nnUNetTrainer.num_epochs``, where the settings name none."""


def sweep_folder(description: SweepDescription) -> Path:
    """``nnUNet_results/DATASET/sweeps/NAME``.

    Raises:
        MissingRequirement: ``nnUNet_results`` is not set.
    """
    return (
        required_folder("nnUNet_results").absolute() / dataset_name(description.dataset) / "sweeps" / description.name
    )


def plan_sweep(description: SweepDescription) -> list[PlannedRun]:
    """Every run, with everything checked that can be checked before the first one starts.

    Raises:
        SettingsError, PlanError, TeacherError, DataError, MissingRequirement: as ``nnunet-kd train`` would; or a run on disk was
            trained with other settings than asked for.
    """
    folder, dataset_json = preprocessed_dataset(description.dataset)
    plans = read_plans(folder / f"{description.plans}.json")
    required_folder("nnUNet_raw")
    for fold in description.folds:
        check_fold(folder, str(fold))
    checkpoints = SweepCheckpoints(description, dataset_json)
    runs = [
        _plan_run(description, name, variant, fold, seed, folder, plans, checkpoints)
        for (name, variant), fold, seed in product(description.rows().items(), description.folds, description.seeds)
    ]
    if problems := [problem for run in runs for problem in _contradictions(run)]:
        listed = "\n  ".join(problems)
        raise SettingsError(
            f"the sweep {description.name!r} holds runs that are not what is asked for now:\n  {listed}\n"
            f"Ask for what is there, give this sweep another --name, or move the folders named away to train them again."
        )
    return runs


def _plan_run(
    description: SweepDescription,
    name: str,
    variant: Variant,
    fold: int | str,
    seed: int,
    dataset_folder: Path,
    plans: Mapping[str, Any],
    checkpoints: SweepCheckpoints,
) -> PlannedRun:
    trainer = method_trainer(variant.method)
    trainer_class = find_trainer(trainer)
    wanted = merge(merge(description.settings, variant.settings), {"seed": seed})
    if description.teacher is not None:
        wanted = merge(wanted, {"teacher": {"path": os.path.abspath(os.path.expanduser(description.teacher))}})
    # nnunet-kd train reads this variable too, so a sweep says it openly
    recipe = variant.recipe or description.recipe or os.environ.get(CONFIG_VARIABLE)
    if recipe is not None and os.path.isfile(recipe):
        recipe = os.path.abspath(recipe)

    planned = planned_reduction(plans, description.configuration)

    def resolved(values: Mapping[str, Any]) -> Settings:
        environment = {SET_VARIABLE: json.dumps(assignments(values)), CONFIG_VARIABLE: recipe or ""}
        found: Settings = trainer_class.resolve(dataset_folder, environment=environment, planned=planned)
        return found

    if description.pretrained_weights is not None:
        wanted["start"] = RANDOM  # which nnU-Net then overwrites
    settings = resolved(wanted)
    if trainer_class.objectives is None and not settings.active_objectives():
        raise SettingsError(
            f"{name}: the method {variant.method} takes its objectives from the settings, which name none. Name at least one, "
            f"for example objectives.dcd.weight=5."
        )
    if trainer_class.requires_start and settings.start == RANDOM and description.pretrained_weights is None:
        raise SettingsError(f"{name}: {random_start_refused(trainer)}")
    asked_for = "start" in wanted or is_asked_for("start", dataset_folder, {CONFIG_VARIABLE: recipe or ""})
    student = reduce_plans(plans, settings.reduction, required=description.configuration)
    wanted = _pinned(wanted, settings, student, description.configuration, fold, checkpoints)
    settings = resolved(wanted)  # what the training is told, and nothing else
    results = sweep_folder(description) / name / f"seed_{seed}"
    model = f"{trainer}__{student['plans_name']}__{description.configuration}"
    folder = results / dataset_folder.name / model / f"fold_{fold}"
    saved = saved_settings(folder / SETTINGS_FILE) or {}
    if not (asked_for or trainer_class.requires_start) and saved.get("start") == RANDOM:
        # its recipe preferred the teacher, which was not possible; an older run, which could not choose, does not say so
        settings = settings.model_copy(update={"start": RANDOM})
    if planned is not None and "reduction" in saved:
        # an older version saved its default there; the plan decides, then as now
        settings = settings.model_copy(update={"reduction": saved["reduction"]})
    arguments = ["train", dataset_folder.name, description.configuration, str(fold), "-m", variant.method]
    arguments += ["-p", description.plans, "-device", description.device]
    arguments += ["--recipe", recipe] if recipe is not None else []
    arguments += [part for assignment in assignments(wanted) for part in ("--set", assignment)]
    arguments += ["--npz"] if description.save_probabilities else []
    return PlannedRun(
        variant=name,
        method=variant.method,
        fold=fold,
        seed=seed,
        epochs=settings.epochs or NNUNET_EPOCHS,
        device=description.device,
        results=results,
        folder=folder,
        arguments=tuple(arguments),
        settings=settings.as_dict(),
        pretrained=checkpoints.start(student, fold),
    )


def _pinned(
    wanted: Mapping[str, Any],
    settings: Settings,
    student: Mapping[str, Any],
    configuration: str,
    fold: int | str,
    checkpoints: SweepCheckpoints,
) -> dict[str, Any]:
    """What is wanted, with every checkpoint and map that the run uses named by path and hash.

    Args:
        wanted: the settings that are asked for.
        settings: what they come to.
        student: its plan.
        configuration, fold: of the run.
        checkpoints: of the sweep.
    """
    stage = PlansManager(dict(student)).get_configuration(configuration)
    pinned = {key: value for key, value in wanted.items() if key != "teacher"}
    if settings.start not in (RANDOM, TEACHER):
        pinned["start"], pinned["start_sha256"] = checkpoints.student(settings.start, fold)
    # the second stage of a cascade finds the first one's segmentations beside the teacher, whatever the method
    if settings.runs_teacher() or settings.start == TEACHER or stage.previous_stage_name is not None:
        stages = settings.compares_stages()
        teachers = [checkpoints.teacher(one, student, fold, stages) for one in settings.teachers()]
        pinned["teacher"] = [one.model_dump(exclude_none=True) for one in teachers]
    soft = settings.active_objectives().get("soft")
    if isinstance(soft, SoftSettings) and soft.reads_maps:
        maps = checkpoints.soft_labels(soft, settings, student, fold)
        chosen = {"maps": maps.settings.maps, "maps_sha256": maps.settings.maps_sha256}
        pinned = merge(pinned, {"objectives": {"soft": chosen}})
        if settings.mirror_axes is None and not settings.runs_teacher():
            # as the training does, which asks no teacher again when it is continued
            pinned["mirror_axes"] = list(maps.description.trained_mirror_axes)
    elif settings.mirror_axes is None and not settings.runs_teacher():
        axes = checkpoints.mirror_axes(settings.teachers(), student, fold)
        if axes is not None and (settings.start == TEACHER or len(axes) < len(stage.patch_size)):
            pinned["mirror_axes"] = list(axes)
    return pinned


def assignments(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as what ``--set`` takes; JSON is YAML."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += assignments(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={yaml_text(value)}")
    return found


def _contradictions(run: PlannedRun) -> Iterator[str]:
    """How what is on disk differs from what is asked for; nothing if there is nothing on disk yet."""
    models = run.folder.parent.parent.glob(f"*__*__*/fold_{run.fold}/{SETTINGS_FILE}")
    for other in sorted(path.parent for path in models if path.parent != run.folder):
        yield f"{run}: {other} was trained with another method, plan or configuration"
    saved = saved_settings(run.folder / SETTINGS_FILE)
    if saved is None:
        if run.trained:
            yield f"{run}: {run.folder} has a final checkpoint but no {SETTINGS_FILE}, so its settings are not known"
        return
    before, now = (_flat(values, str(run.folder)) for values in (saved, run.settings))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        listed = "; ".join(f"{key}: there {before.get(key)}, asked for {now.get(key)}" for key in changed)
        way = (
            "--set start=random"
            if changed == ["start"]
            else "--recipe paper (of other methods, a recipe with these values)"
        )
        older = f" (trained by an older version; {way} goes on with it)"
        yield f"{run} ({run.folder}): {listed}{older if 'start' in changed and 'start' not in saved else ''}"
    if (record := read_record(run.folder)) is None:
        return
    started_from, asked_for = record.pretrained_sha256, run.pretrained.sha256 if run.pretrained else None
    if started_from != asked_for:
        random = "random weights"
        yield f"{run} ({run.folder}): pretrained_weights: there {started_from or random}, asked for {asked_for or random}"


def _flat(values: Mapping[str, Any], source: str) -> dict[str, str]:
    """Values by key; settings that an older version did not write yet have their defaults.

    A teacher with a hash, maps with one, and a start with one, are known by it, wherever their folder was moved to.
    """
    settings = validate_settings(values, source)
    teachers = [one.model_copy(update={"path": None}) if one.sha256 else one for one in settings.teacher]
    plain = settings.model_copy(update={"teacher": teachers}).as_dict()
    if (soft := plain["objectives"].get("soft")) and soft["maps_sha256"]:
        soft["maps"] = None
    if plain["start_sha256"]:
        plain["start"] = None
    pairs = (line.partition("=") for line in assignments(plain))
    return {key: value for key, _, value in pairs}
