"""What ``compare`` reads of a sweep: its finished runs, their teachers, their training times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from nnunet_kd.distillation.settings_sources import read_settings_file
from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.evaluation.run_warnings import find_warnings
from nnunet_kd.evaluation.runs import Method, Run, Split, fold_cases, read_run
from nnunet_kd.evaluation.seeds import AVERAGED, BySeed, seeds_told
from nnunet_kd.evaluation.tables import DASH, Table
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.nnunet.folds import is_fold
from nnunet_kd.system.counts import some
from nnunet_kd.system.files import why_no_folder
from nnunet_kd.workflows.sweep.description import DESCRIPTION_FILE
from nnunet_kd.workflows.sweep.record import epoch_seconds, read_record

TEACHER = "teacher"
Place = tuple[str, int, str]
"""Variant, seed and fold."""


@dataclass(frozen=True)
class FinishedSweep:
    """The runs of a sweep that every variant has finished.

    Attributes:
        folder: the sweep's.
        variants: in the order asked for, else of its description, others behind them.
        seeds, folds: those that all variants have.
        fold_folders: nnU-Net's folder of the fold, by variant, seed and fold.
        left_out: what is not compared, in words.
    """

    folder: Path
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[str, ...]
    fold_folders: Mapping[Place, Path]
    left_out: tuple[str, ...]

    @cached_property
    def runs(self) -> dict[Place, Run]:
        """What every run left behind."""
        return {place: read_run(folder.parent, place[2]) for place, folder in self.fold_folders.items()}

    @cached_property
    def teacher_folders(self) -> dict[str, Path]:
        """The teacher's validation predictions by fold; empty unless all distilled runs had one and the same in each."""
        found = {fold: place for fold, place in self._teachers_of_their_folds().items() if _has_predictions(place)}
        return found if len(found) == len(self.folds) and TEACHER not in self.variants else {}

    def _teachers_of_their_folds(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for fold in self.folds:
            of_fold = [run.teachers for (_, _, own), run in self.runs.items() if own == fold and run.teachers]
            places = {
                Path(str(teacher.get("path"))) / f"fold_{fold}" / "validation"
                for teachers in of_fold
                for teacher in teachers
                if str(teacher.get("fold")) == fold
            }
            if len(places) == 1 and all(len(teachers) == 1 for teachers in of_fold):
                (found[fold],) = places
        return found

    def methods(self, reference: str, apart: bool) -> dict[str, list[list[tuple[Path, str | None]]]]:
        """The rows of the comparison: by name, for every seed, every fold's predictions with the fold.

        Args:
            reference: stays averaged over seeds when the others are shown apart.
            apart: one row per seed.
        """
        rows: dict[str, list[list[tuple[Path, str | None]]]] = {}
        if self.teacher_folders:
            rows[TEACHER] = [[(self.teacher_folders[fold], fold) for fold in self.folds]]
        for variant in self.variants:
            by_seed: list[list[tuple[Path, str | None]]] = [
                [(self.fold_folders[variant, seed, fold] / "validation", fold) for fold in self.folds]
                for seed in self.seeds
            ]
            if not apart or variant == reference:
                rows[variant] = by_seed
            if apart:
                rows |= {f"{variant}, seed {seed}": [parts] for seed, parts in zip(self.seeds, by_seed, strict=True)}
        return rows

    def by_seed(self, method: str, evaluations: Sequence[Evaluation]) -> BySeed:
        """A row's evaluations with their seeds; a teacher was trained once."""
        seeds = self.seeds if method in self.variants else (None,)
        return dict(zip(seeds, evaluations, strict=True))

    def described(self, rows: Mapping[str, Sequence[Sequence[tuple[Path, str | None]]]]) -> list[Method]:
        """Rows as the report takes them, each with the run of its first seed and fold."""
        runs = {self.fold_folders[place] / "validation": run for place, run in self.runs.items()}
        found = []
        for name, by_seed in rows.items():
            predictions, fold = by_seed[0][0]
            run = runs.get(predictions) or read_run(predictions.parent.parent, str(fold))
            found.append(Method(name, predictions, run))
        return found

    def warnings(self, splits: Sequence[Split] | None) -> list[str]:
        """What a reader must know: what was left out, and models that had seen their validation cases."""
        found = list(self.left_out)
        if not self.teacher_folders and TEACHER not in self.variants:
            found += [
                f"the teacher is not shown: {_why_no_teacher(place)}"
                for place in self._teachers_of_their_folds().values()
                if not _has_predictions(place)
            ]
        for seed, fold in product(self.seeds, self.folds):
            methods = [
                Method(name, self.fold_folders[name, seed, fold], self.runs[name, seed, fold]) for name in self.variants
            ]
            cases = sorted(fold_cases(splits, fold, "val")) if splits is not None else []
            found += [f"fold {fold}: {warning}" for warning in find_warnings(methods, cases, splits)]
        return list(dict.fromkeys(found))

    def facts(self, apart: bool) -> dict[str, str]:
        """Lines for the report's head."""
        told = seeds_told(self.seeds, "shown apart" if apart else AVERAGED)
        facts = {"Sweep": self.folder.name, "Seeds": told}
        if len(self.seeds) > 1 and not apart:
            facts["Pictures, curves and runs"] = f"those of seed {self.seeds[0]}"
        return facts

    def training_table(self) -> Table | None:
        """Training times by variant, if they were recorded."""
        rows = []
        for variant in self.variants:
            records = [read_record(folder) for (name, _, _), folder in self.fold_folders.items() if name == variant]
            hours = np.array([record.training_seconds / 3600 for record in records if record is not None])
            if not hours.size:
                continue
            epochs = [
                seconds
                for (name, _, _), folder in self.fold_folders.items()
                if name == variant
                for seconds in epoch_seconds(folder)
            ]
            epoch = f"{np.median(epochs):.3g}" if epochs else DASH
            spread = f"{hours.min():.3g} to {hours.max():.3g}" if hours.size > 1 else DASH
            shares = [run.clipped for (name, _, _), run in self.runs.items() if name == variant]
            clipped = DASH if np.isnan(shares).all() else f"{np.nanmean(shares):.1%}"
            rows.append((variant, str(hours.size), f"{hours.mean():.3g}", spread, f"{hours.sum():.3g}", epoch, clipped))
        header = ("Method", "Runs", "Hours per run", "Range", "Hours in all", "Median epoch (s)", "Clipped steps")
        note = (
            "nnU-Net's epoch times over all restarts, without start and validation; other load on the machine counts, in the "
            "median epoch the least. Clipped steps: share of the steps whose gradient nnU-Net shortened."
        )
        return Table("Training time", header, tuple(rows), note) if rows else None


def _why_no_teacher(validation: Path) -> str:
    """In words, of a teacher without predictions in its ``MODEL/fold_X/validation``."""
    model = validation.parents[1]
    if not model.is_dir():
        return (
            f"{model} is no folder (any more), so its predictions of the validation cases are not known. Compare it with "
            f"`nnunet-kd compare` NAME=DIR ..., without --sweep."
        )
    return f"{validation} holds no predictions. nnUNetv2_train with --val makes them."


def _has_predictions(place: Path) -> bool:
    """Whether nnU-Net's validation left more than its summary."""
    return (place / "summary.json").is_file() and any(path.suffix != ".json" for path in place.iterdir())


def find_finished(
    folder: Path, only_fold: str | None = None, only_variants: Sequence[str] | None = None
) -> FinishedSweep:
    """Look for a sweep's runs on disk.

    Args:
        folder: ``nnUNet_results/DATASET/sweeps/NAME``.
        only_fold: leave the other folds out.
        only_variants: leave the other variants out, finished or not; this is then the rows' order.

    Raises:
        DataError: no sweep, or no seed that all variants have finished in all folds; tells what is missing.
        SettingsError: one of ``only_variants`` is unknown.
    """
    if not folder.is_dir():
        raise DataError(
            f"--sweep {folder}: the folder {why_no_folder(folder)}. Give $nnUNet_results/DATASET/sweeps/NAME."
        )
    found = _trainings(folder, only_fold)
    known = {variant for variant, _, _ in found}
    if only_variants is not None:
        if unknown := [variant for variant in only_variants if variant not in known]:
            raise SettingsError(f"--sweep {folder} has no variant {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        found = {place: path for place, path in found.items() if place[0] in only_variants}
    variants = list(dict.fromkeys(only_variants or _in_order(folder, known)))
    folds = sorted({fold for _, _, fold in found}, key=lambda fold: (len(fold), fold))
    finished = {
        place
        for place, path in found.items()
        if (path / "validation" / "summary.json").is_file() and (path / FINAL).is_file()
    }
    started = [variant for variant in variants if any(place[0] == variant for place in finished)]
    seeds = [
        seed
        for seed in sorted({seed for _, seed, _ in found})
        if all((variant, seed, fold) in finished for variant, fold in product(started, folds))
    ]
    all_seeds = sorted({seed for _, seed, _ in found})
    missing = [place for place in product(variants, all_seeds, folds) if place not in finished]
    listed = some([f"{variant}, seed {seed}, fold {fold}" for variant, seed, fold in missing], 8, "; ")
    if not started or not seeds:
        raise DataError(
            f"--sweep {folder}: there is no seed with which every variant is trained and validated in every fold "
            f"({f'not finished: {listed}' if missing else 'no run was found'}). Finish the sweep: the same command again; or "
            f"compare one fold with -f."
        )
    left_out = [f"not finished: {listed}."] if missing else []
    if len(started) < len(variants):
        left_out.append(
            f"left out, as nothing of it is finished: {', '.join(v for v in variants if v not in started)}."
        )
    if len(seeds) < len(all_seeds):
        left_out.append(
            f"only seed {', '.join(map(str, seeds))} is finished in all variants and folds, others are left out."
        )
    used = {place: found[place] for place in product(started, seeds, folds)}
    return FinishedSweep(folder, tuple(started), tuple(seeds), tuple(folds), used, tuple(left_out))


def _trainings(folder: Path, only_fold: str | None) -> dict[Place, Path]:
    """Every fold's folder, finished or not.

    Raises:
        DataError: two of one variant, seed and fold.
    """
    found: dict[Place, Path] = {}
    for path in sorted(folder.glob("*/seed_*/Dataset*/*__*__*/fold_*")):
        variant, seed_name = path.relative_to(folder).parts[:2]
        fold = path.name.removeprefix("fold_")
        if not re.fullmatch(r"seed_[0-9]+", seed_name) or not is_fold(fold) or only_fold not in (None, fold):
            continue
        place = (variant, int(seed_name.removeprefix("seed_")), fold)
        if place in found:
            raise DataError(f"{found[place]} and {path} are two trainings of one variant. Move one of them away.")
        found[place] = path
    return found


def _in_order(folder: Path, variants: set[str]) -> list[str]:
    """As described, then by name."""
    file = folder / DESCRIPTION_FILE
    described = read_settings_file(file) if file.is_file() else {}
    order = [*(described.get("methods") or []), *(described.get("variants") or {})]
    return sorted(variants, key=lambda name: (order.index(name) if name in order else len(order), name))
