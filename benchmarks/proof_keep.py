"""What is kept of the proof's trainings with the code: values by case, origin, epochs, settings, students. No machine's paths."""

from __future__ import annotations

import json
import os
import shlex
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from hippocampus_teacher import LICENCE
from proof_datasets import FOLD, QUEUE, Dataset
from proof_origin import COLUMNS, check_origin, origins_kept, read_origin, write_origin
from sweep_trainings import Training, add_rows, begun_trainings, without_paths
from sweep_trainings import finished_trainings as of_sweep

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.folders import evaluate_folder
from nnunet_kd.evaluation.kept import read_kept, write_kept
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.export.folder_export import FolderOptions, export_folder
from nnunet_kd.models.checkpoint import CLIPPED, ENTRY, mean_share, read_checkpoint
from nnunet_kd.models.folder import open_model
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.files import sha256, write_atomically
from nnunet_kd.workflows.comparison import CASES_BY_SEED
from nnunet_kd.workflows.sweep.description import SweepDescription
from nnunet_kd.workflows.sweep.record import epoch_seconds, read_record

SHOWN_SEED = 0
"""The students of this seed are kept as archives: named beforehand, so that nobody chooses a good one."""
RUN_COLUMNS = (
    *("variant", "seed", *COLUMNS, "checkpoint_sha256", "teacher_sha256", "soft_labels", "starts"),
    *("training_seconds", "command_seconds", "median_epoch_seconds", "clipped_share", "command"),
)
EPOCH_COLUMNS = ("variant", "seed", "epoch", "training_loss", "pseudo_dice", "clipped_share", "losses")


def sweep_folder(name: str) -> Path:
    """Where a sweep's trainings lie."""
    return Path(os.environ["nnUNet_results"], QUEUE[name].name, "sweeps", f"proof-{name}")


def finished_trainings(name: str) -> Iterator[Training]:
    """Of a sweep of the queue."""
    return of_sweep(sweep_folder(name), FOLD)


def kept_seeds(name: str, target: Path | None) -> dict[str, set[int]]:
    """Seeds by row that are kept already, wherever they were trained."""
    path = target / f"proof-{name}" / CASES_BY_SEED if target is not None else None
    values = read_kept([path]) if path is not None and path.is_file() else {}
    return {row: {seed for seed in by_seed if seed is not None} for row, by_seed in values.items()}


def finished_seeds(name: str) -> dict[str, set[int]]:
    """Seeds by row that are finished on this disk."""
    found: dict[str, set[int]] = {}
    for one in finished_trainings(name):
        found.setdefault(one.row, set()).add(one.seed)
    return found


def name_origins(name: str) -> None:
    """Give every training that has begun the origin of its sweep where it has none yet; before the sweep's own is replaced."""
    if (origin := read_origin(sweep_folder(name))) is not None:
        for folder in begun_trainings(sweep_folder(name)):
            if read_origin(folder) is None:
                write_origin(folder, origin)


def keep(name: str, target: Path) -> list[str]:
    """Add what is finished and not yet kept to ``target/proof-NAME``, one training after another.

    Returns:
        What could not be kept, in words.
    """
    name_origins(name)
    target.mkdir(parents=True, exist_ok=True)
    failed = []
    kept = kept_seeds(name, target)
    for one in finished_trainings(name):
        if one.seed in kept.get(one.row, ()):
            continue
        with FileLock(target / ".keep.lock"):  # `proof.py keep` may run beside `train`
            if one.seed in kept_seeds(name, target).get(one.row, ()):
                continue
            try:
                keep_training(name, one, target)
            except (Exception, SystemExit) as error:  # the others do not need it
                failed.append(f"{name}, {one.row}, seed {one.seed}: {error or type(error).__name__}")
            else:
                print(f"kept: {name}, {one.row}, seed {one.seed}", flush=True)
    return failed


def keep_training(name: str, one: Training, target: Path) -> None:
    """Everything of one training; its values come last, since what is in them is not looked at again."""
    dataset, place = QUEUE[name], target / f"proof-{name}"
    origin = read_origin(one.folder)
    if origin is None:
        raise DataError(f"nothing says which code {one.folder} was trained with")
    check_origin(origin, origins_kept(target))
    place.mkdir(parents=True, exist_ok=True)
    checkpoint = read_checkpoint(one.folder / FINAL, in_memory=False)
    keep_settings(one.row, checkpoint, place)
    path = place / CASES_BY_SEED
    values = read_kept([path]) if path.is_file() else {}
    teacher = kept_teacher(dataset, target) or evaluate(dataset, dataset.teacher_predictions)
    values.setdefault("teacher", {None: teacher})
    values.setdefault(one.row, {})[one.seed] = evaluate(dataset, one.folder / "validation")
    add_rows(place / "epochs.csv", EPOCH_COLUMNS, epoch_rows(one, checkpoint))
    add_rows(place / "runs.csv", RUN_COLUMNS, [run_row(one, checkpoint, origin)])
    if name == "hippocampus" and one.seed == SHOWN_SEED:
        with open_model(one.folder.parent, (FOLD,)) as model:
            options = FolderOptions(licence=LICENCE, overwrite=True)
            (target / "students").mkdir(exist_ok=True)
            export_folder(model, target / "students" / f"{one.row}.zip", options)
    write_kept(values, path)


def run_row(one: Training, checkpoint: dict[str, Any], origin: dict[str, str]) -> tuple[str, ...]:
    """See :data:`RUN_COLUMNS`."""
    record, settings = read_record(one.folder), checkpoint[ENTRY]["settings"]
    assert record is not None  # the sweep has written one
    seconds = epoch_seconds(one.folder)
    soft = (settings["objectives"] or {}).get("soft") or {}
    return (
        *(one.row, str(one.seed), *(origin[column] for column in COLUMNS), sha256(one.folder / FINAL)),
        *(teacher_hash(settings), Path(str(soft.get("maps") or "")).name, str(record.starts)),
        *(f"{sum(seconds):.0f}", f"{record.command_seconds:.0f}", f"{statistics.median(seconds):.3g}"),
        *(f"{mean_share(checkpoint[ENTRY].get(CLIPPED) or []):.4f}", without_paths(shlex.join(record.command))),
    )


def teacher_hash(settings: dict[str, Any]) -> str:
    """SHA-256 of the teachers' checkpoints that a training's settings name."""
    teacher = settings.get("teacher") or []
    return " ".join(
        str(each.get("sha256") or "") for each in (teacher if isinstance(teacher, list) else [teacher])
    ).strip()


def epoch_rows(one: Training, checkpoint: dict[str, Any]) -> list[tuple[str, ...]]:
    """See :data:`EPOCH_COLUMNS`; ``losses`` is JSON, every objective's mean losses of that epoch."""
    logged, entry = checkpoint["logging"], checkpoint[ENTRY]
    shares = entry.get(CLIPPED) or []
    found: list[tuple[str, ...]] = []
    for n, (loss, dice) in enumerate(zip(logged["train_losses"], logged["mean_fg_dice"], strict=True)):
        losses = {name: float(f"{value:.5g}") for name, value in (entry["history"][n : n + 1] or [{}])[0].items()}
        share = f"{shares[n]:.4f}" if n < len(shares) else ""
        found.append((one.row, str(one.seed), str(n + 1), f"{loss:.6f}", f"{dice:.6f}", share, json.dumps(losses)))
    return found


def keep_settings(row: str, checkpoint: dict[str, Any], place: Path) -> None:
    """All settings of a row, once; its trainings differ by their seed alone.

    Raises:
        DataError: another training of the row has other settings.
    """
    path = place / "settings" / f"{row}.yaml"
    path.parent.mkdir(exist_ok=True)
    shared = {name: value for name, value in checkpoint[ENTRY]["settings"].items() if name != "seed"}
    text = without_paths(yaml.safe_dump(shared, sort_keys=False))
    if path.is_file() and path.read_text() != text:
        raise DataError(f"its settings are not those of {path}, which other trainings of the row have")
    write_atomically(path, lambda file: file.write(text.encode()))


def contradiction(name: str, row: str, description: SweepDescription, target: Path | None) -> str | None:
    """Why trainings of a row could not be kept beside those that are, in words; ``None`` where nothing speaks against it.

    Looked at before hours of training: the settings that the sweep's file names, against those kept of the row.
    """
    path = target / f"proof-{name}" / "settings" / f"{row}.yaml" if target is not None else None
    if path is None or not path.is_file():
        return None
    described = {**description.settings, **description.rows()[row].settings}
    if not (unlike := differing(described, yaml.safe_load(path.read_text()))):
        return None
    told = ", ".join(unlike)
    return f"{name}, {row}: {told}: not as in {path}, which other trainings of the row have. One of them must go."


def differing(described: Mapping[str, Any], kept: Mapping[str, Any], before: str = "") -> list[str]:
    """Names of the settings that are described otherwise than kept; soft labels are described by how their name begins."""
    found = []
    for name, value in described.items():
        other = kept.get(name) if isinstance(kept, Mapping) else None
        if isinstance(value, Mapping):
            found += differing(value, other or {}, f"{before}{name}.")
        elif name == "maps" and value is not None:
            found += [] if Path(str(other)).name.startswith(str(value)) else [before + name]
        elif value != other:
            found.append(before + name)
    return found


def kept_teacher(dataset: Dataset, target: Path | None) -> Evaluation | None:
    """The teacher's values, as kept with any sweep of the dataset; ``None``: they are not kept."""
    if target is None:
        return None
    for path in sorted(target.glob(f"proof-*/{CASES_BY_SEED}")):
        if QUEUE.get(path.parent.name.removeprefix("proof-")) is dataset and "teacher" in (kept := read_kept([path])):
            return kept["teacher"][None]
    return None


def keep_teacher(dataset: Dataset, target: Path) -> None:
    """Measure a teacher, once for all tables and machines; it is kept with the first sweep of its dataset."""
    if kept_teacher(dataset, target) is None:
        place = target / f"proof-{next(name for name in QUEUE if QUEUE[name] is dataset)}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / CASES_BY_SEED
        values = read_kept([path]) if path.is_file() else {}
        write_kept({**values, "teacher": {None: evaluate(dataset, dataset.teacher_predictions)}}, path)


def evaluate(dataset: Dataset, predictions: Path) -> Evaluation:
    """Of segmentations of the fold's validation cases."""
    raw, options = Path(os.environ["nnUNet_raw"], dataset.name), MetricOptions(nsd_tolerance=dataset.nsd_tolerance)
    return evaluate_folder(predictions, raw / "labelsTr", raw / "dataset.json", options, dataset.validation_cases)
