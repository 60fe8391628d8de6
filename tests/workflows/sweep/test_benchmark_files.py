"""Every row of the shipped sweeps says what is different about it, and that it is."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nnunet_kd.distillation.settings_sources import SET_VARIABLE, merge, resolve_settings
from nnunet_kd.nnunet.environment import find_trainer, method_trainer
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant, describe_sweep
from nnunet_kd.workflows.sweep.runs import assignments

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
FILES = sorted(BENCHMARKS.glob("*.yaml"))
NEW = ("starts", "inherited", "soft", "best", "balance", "soft-final")


def resolved(description: SweepDescription, variant: Variant) -> dict[str, Any]:
    """What a row's training would be told, but for files that only a machine with the data has."""
    trainer = find_trainer(method_trainer(variant.method))
    wanted = merge(description.settings, variant.settings)
    environment = {SET_VARIABLE: json.dumps(assignments(wanted))}
    if variant.recipe:
        environment["NNUNET_KD_CONFIG"] = variant.recipe
    return resolve_settings(trainer.recipe, trainer.objectives, None, environment=environment).as_dict()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_is_another_training(path: Path) -> None:
    description = describe_sweep(path, {})
    rows = {name: (variant.method, resolved(description, variant)) for name, variant in description.rows().items()}
    assert len({json.dumps(row, sort_keys=True) for row in rows.values()}) == len(rows)
    for name, variant in description.rows().items():
        told = flat(rows[name][1])
        for key, value in flat(variant.settings).items():
            assert told[key] == value, f"{name}: {key}"


@pytest.mark.parametrize("name", NEW)
def test_each_is_one_command(name: str) -> None:
    module = runpy.run_path(str(BENCHMARKS / "hippocampus.py"))
    path = module["DESCRIPTIONS"][name]
    assert f"python benchmarks/hippocampus.py {name}\n" in path.read_text()
    description = describe_sweep(path, {})
    reads_maps = {
        (str(description.folds[0]), settings["maps"])
        for row in description.rows().values()
        if (settings := (row.settings.get("objectives") or {}).get("soft")) and "maps" in settings
    }
    made = {
        (fold, f"nnUNetTrainer_20epochs_fold_{fold}_{'not_' * ('--no-mirroring' in choices)}mirrored")
        for fold, *choices in module["SOFT_LABELS"].get(name, ())
    }
    assert reads_maps == made
