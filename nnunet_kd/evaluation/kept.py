"""``cases_by_seed.csv``: every training's values by case, kept so that they can be compared again without predictions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import CASE_COLUMNS, Evaluation
from nnunet_kd.evaluation.seeds import BySeed, Trainings
from nnunet_kd.system.counts import counted
from nnunet_kd.system.files import write_csv

OPTION_COLUMNS = tuple(field.name for field in fields(MetricOptions))
COLUMNS = ("method", "seed", *CASE_COLUMNS, *OPTION_COLUMNS)
CsvRow = Mapping[str, str]


def write_kept(by_method: Mapping[str, BySeed], path: Path) -> None:
    """One row per method, seed, case and class, with the conventions that it was measured by.

    The seed of what was trained once (``None``) and values that are not defined are left blank.
    """
    rows: list[list[object]] = []
    for method, by_seed in by_method.items():
        for seed, evaluation in by_seed.items():
            options = ["" if option is None else option for option in asdict(evaluation.options).values()]
            own = ["" if seed is None else seed]
            rows += ([method, *own, *cells, *options] for cells in evaluation.case_rows())
    write_csv(path, COLUMNS, rows)


def read_kept(paths: Sequence[Path]) -> dict[str, dict[int | None, Evaluation]]:
    """The trainings of one or several files, by method and seed, in the order of the files.

    A training that two files hold is taken once.

    Raises:
        DataError: a file is missing, is none of :func:`write_kept`, or contradicts itself or another file; or the files were
            measured by different conventions.
    """
    found: dict[str, dict[int | None, Evaluation]] = {}
    for path in paths:
        for (method, seed), rows in _rows_by_training(path).items():
            title = method if seed is None else f"{method}, seed {seed}"
            evaluation = _evaluation(rows, path, title)
            known = found.setdefault(method, {}).setdefault(seed, evaluation)
            if not _same(known, evaluation):
                raise DataError(
                    f"{known.prediction_folder} and {path} hold different values of {title}. They are two trainings under one "
                    f"name, or cases were measured anew; give one of the files, or rename the method in one of them."
                )
    _check_conventions(found)
    return found


@dataclass(frozen=True)
class ChosenTrainings:
    """What of the kept trainings is compared.

    Attributes:
        trainings: methods in the order asked for, with the seeds that all of them have.
        left_out: what is not compared, in words.
    """

    trainings: Trainings
    left_out: tuple[str, ...]


def choose_trainings(
    kept: Mapping[str, BySeed],
    reference: str,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> ChosenTrainings:
    """Take those methods with the seeds that all of them have.

    Args:
        kept: from :func:`read_kept`.
        reference: what the others will be compared with.
        methods: in this order; default: all.
        seeds: no others, and each of them; default: all that every method has.

    Raises:
        SettingsError: a method or seed is not there, or no seed is shared by all.
    """
    names = list(kept) if methods is None else list(dict.fromkeys(methods))
    if unknown := [name for name in names if name not in kept]:
        raise SettingsError(f"the files hold no method {unknown[0]!r}; they hold {', '.join(kept)}.")
    own = {name: {seed for seed in kept[name] if seed is not None} for name in names if None not in kept[name]}
    every = sorted(set().union(*own.values()))
    shared = [seed for seed in every if all(seed in of_method for of_method in own.values())]
    wanted = shared if seeds is None else list(dict.fromkeys(seeds))
    table = "; ".join(f"{name}: {', '.join(map(str, sorted(of_method)))}" for name, of_method in own.items())
    if missing := sorted(set(wanted) - set(shared)):
        raise SettingsError(
            f"seed {missing[0]} is not there of every method ({table}). Choose with --methods and --seeds."
        )
    if own and not wanted:
        raise SettingsError(
            f"no seed is there of every method ({table}). Choose methods that share one with --methods."
        )
    chosen: dict[str, BySeed] = {
        name: {seed: kept[name][seed] for seed in (wanted if name in own else [None])} for name in names
    }
    left = [seed for seed in every if seed not in wanted]
    told = f"seed {', '.join(map(str, left))} left out; every method has {', '.join(map(str, wanted))}."
    return ChosenTrainings(Trainings(tuple(wanted), chosen, reference), (told,) if left and seeds is None else ())


def _rows_by_training(path: Path) -> dict[tuple[str, int | None], list[CsvRow]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header, rows = reader.fieldnames or (), list(reader)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Give the cases_by_seed.csv of a comparison of a sweep.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}. Give the cases_by_seed.csv of a comparison.") from error
    if lacking := [name for name in COLUMNS if name not in header]:
        raise DataError(
            f"{path} lacks the columns {', '.join(lacking)}. Give the cases_by_seed.csv of a comparison of a sweep, or make the "
            f"comparison anew."
        )
    found: dict[tuple[str, int | None], list[CsvRow]] = {}
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values() or not (row["seed"] == "" or row["seed"].isdigit()):
            raise DataError(
                f"{path}, line {number}: not a row of cases_by_seed.csv. Take the file as the comparison wrote it."
            )
        found.setdefault((row["method"], int(row["seed"]) if row["seed"] else None), []).append(row)
    if not found:
        raise DataError(f"{path} holds no training. Give the cases_by_seed.csv of another comparison.")
    return found


def _evaluation(rows: Sequence[CsvRow], path: Path, title: str) -> Evaluation:
    """One training's rows as the evaluation that they were written from."""
    cases, classes = sorted({row["case"] for row in rows}), list(dict.fromkeys(row["class"] for row in rows))
    by_place = {(row["case"], row["class"]): row for row in rows}
    if len(by_place) != len(rows) or len(rows) != len(cases) * len(classes):
        raise DataError(
            f"{path}: {title} has {counted(len(rows), 'row')} for {counted(len(cases), 'case')} of {len(classes)} "
            f"classes. Take the file "
            f"as the comparison wrote it."
        )
    try:
        values = {
            name: np.array([[float(by_place[case, own][name] or "nan") for own in classes] for case in cases])
            for name in CASE_COLUMNS[2:]
        }
        options = {_options(row) for row in rows}
    except ValueError as error:
        raise DataError(
            f"{path}: {title} holds something that is no number ({error}). Take the file as the comparison wrote it."
        ) from error
    if len(options) > 1:
        raise DataError(f"{path}: {title} was measured by more than one convention. Make the comparison anew.")
    return Evaluation(path, path, tuple(cases), tuple(classes), values, options.pop())


def _options(row: CsvRow) -> MetricOptions:
    if row["empty"] not in ("nan", "perfect"):
        raise ValueError(f"empty: {row['empty']!r}")
    empty: Literal["nan", "perfect"] = "perfect" if row["empty"] == "perfect" else "nan"
    penalty = row["hd95_penalty"]
    return MetricOptions(float(row["nsd_tolerance"]), empty, float(penalty) if penalty else None)


def _same(one: Evaluation, other: Evaluation) -> bool:
    if (one.cases, one.classes, one.options) != (other.cases, other.classes, other.options):
        return False
    return all(np.array_equal(one.values[name], other.values[name], equal_nan=True) for name in one.values)


def _check_conventions(found: Mapping[str, BySeed]) -> None:
    by_options: dict[MetricOptions, Path] = {}
    for by_seed in found.values():
        for evaluation in by_seed.values():
            by_options.setdefault(evaluation.options, evaluation.prediction_folder)
    if len(by_options) > 1:
        listed = "; ".join(f"{path}: {options}" for options, path in by_options.items())
        raise DataError(
            f"the files were measured by different conventions ({listed}). Compare them anew with the same."
        )
