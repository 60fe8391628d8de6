"""What is kept of the hippocampus sweeps with the code, training by training: values, commands, epochs, calibration.

No machine's paths are in it. Models and predictions need not stay on disk.
"""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sweep_trainings import Training, add_rows, finished_trainings, read_rows, without_paths

from nnunet_kd.evaluation.calibration import MEASURES, Calibration, evaluate_probabilities
from nnunet_kd.evaluation.folders import evaluate_folder
from nnunet_kd.evaluation.kept import read_kept, write_kept
from nnunet_kd.evaluation.results import OVERALL
from nnunet_kd.evaluation.runs import fold_cases, read_splits
from nnunet_kd.models.checkpoint import CLIPPED, ENTRY, mean_share, read_checkpoint
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.nnunet.folds import SPLITS_FILE
from nnunet_kd.system.files import sha256
from nnunet_kd.workflows.comparison import CASES_BY_SEED
from nnunet_kd.workflows.sweep.record import epoch_seconds, read_record

SOFTWARE = ("nnunetv2", "torch")
"""Whose versions are kept with every training."""
RUNS = "runs.csv"
RUN_COLUMNS = ("variant", "seed", "checkpoint_sha256", "training_seconds", "median_epoch_seconds", *SOFTWARE, "command")


def trained_elsewhere(sweep: Path, target: Path | None, seeds: Collection[int]) -> set[str]:
    """Rows that are kept with all these seeds, and have no training on this disk: another machine has trained them.

    Args:
        sweep: its folder.
        target: the folder of results that takes it; ``None``: nothing is kept.
        seeds: that are to be trained.
    """
    path = target / sweep.name / CASES_BY_SEED if target is not None else None
    kept = read_kept([path]) if path is not None and path.is_file() else {}
    return {row for row, by_seed in kept.items() if {*seeds} <= {*by_seed} and not (sweep / row).is_dir()}


def keep_finished(sweep: Path, target: Path, dataset: str, fold: str) -> None:
    """Add every training that is finished, and not yet kept as it is, to ``target/SWEEP``.

    Args:
        sweep: its folder.
        target: folder of results.
        dataset: nnU-Net's name of it.
        fold: of the sweep.
    """
    place = target / sweep.name
    known = {(row["variant"], row["seed"], row["checkpoint_sha256"]) for row in read_rows(place / RUNS)}
    for one in finished_trainings(sweep, fold):
        if (one.row, str(one.seed), sha256(one.folder / FINAL)) not in known:
            keep_training(one, place, dataset, fold)
            print(f"kept: {one.row}, seed {one.seed}", flush=True)


def keep_training(one: Training, place: Path, dataset: str, fold: str) -> None:
    """Everything of one training, in place of what was kept of it; its row in :data:`RUNS` comes last."""
    place.mkdir(parents=True, exist_ok=True)
    raw, preprocessed = (Path(os.environ[name], dataset) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    cases = sorted(fold_cases(read_splits(preprocessed / SPLITS_FILE), fold, "val"))
    measured = (one.folder / "validation", raw / "labelsTr", raw / "dataset.json")
    path = place / CASES_BY_SEED
    values = read_kept([path]) if path.is_file() else {}
    values.setdefault(one.row, {})[one.seed] = evaluate_folder(*measured, cases=cases)
    write_kept(values, path)
    if next((one.folder / "validation").glob("*.npz"), None) is not None:
        found = evaluate_probabilities(*measured, cases)
        columns = ("variant", "seed", "class", *(measure.name for measure in MEASURES))
        add_rows(place / "calibration.csv", columns, calibration_rows(one, found))
    record, checkpoint = read_record(one.folder), read_checkpoint(one.folder / FINAL, in_memory=False)
    assert record is not None  # the sweep has written one
    if shares := checkpoint.get(ENTRY, {}).get(CLIPPED):
        share = (one.row, str(one.seed), f"{mean_share(shares):.4f}")
        add_rows(place / "clipped.csv", ("variant", "seed", "share_of_steps"), [share])
    columns = ("variant", "seed", "epoch", "training_loss", "pseudo_dice")
    add_rows(place / "epochs.csv", columns, epoch_rows(one, checkpoint["logging"]))
    command = without_paths(shlex.join(record.command))
    seconds = (f"{record.training_seconds:.0f}", f"{statistics.median(epoch_seconds(one.folder)):.3g}")
    software = (record.software[name] for name in SOFTWARE)
    run = (one.row, str(one.seed), sha256(one.folder / FINAL), *seconds, *software, command)
    add_rows(place / RUNS, RUN_COLUMNS, [run])


def calibration_rows(one: Training, found: Calibration) -> list[tuple[str, ...]]:
    """Means over cases, of every class and of each case's mean over classes."""
    return [
        (
            *(one.row, str(one.seed), name or OVERALL),
            *(f"{found.summary(measure.name, name).mean:.6g}" for measure in MEASURES),
        )
        for name in (None, *found.classes)
    ]


def epoch_rows(one: Training, logged: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of nnU-Net's log, by epoch."""
    pairs = zip(logged["train_losses"], logged["mean_fg_dice"], strict=True)
    return [(one.row, str(one.seed), str(n), f"{loss:.6f}", f"{dice:.6f}") for n, (loss, dice) in enumerate(pairs, 1)]
