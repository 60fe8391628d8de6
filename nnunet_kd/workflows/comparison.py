"""A comparison from end to end: predictions found, measured, compared, and what is left behind of it."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_kd.datasets.splits import groups_by_regex
from nnunet_kd.errors import DataError, NnunetKdWarning, SettingsError
from nnunet_kd.evaluation.calibration import calibration_table, pool_calibrations
from nnunet_kd.evaluation.comparison import check_roles, compare, teacher_among
from nnunet_kd.evaluation.costs.profiling import Profile
from nnunet_kd.evaluation.costs.tables import read_profiles
from nnunet_kd.evaluation.kept import choose_trainings, read_kept, write_kept
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.pooling import average_seeds, partly_defined, pool_folds
from nnunet_kd.evaluation.references import References, find_references
from nnunet_kd.evaluation.report import Pictures, ReportInput, write_report
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.evaluation.run_warnings import find_warnings
from nnunet_kd.evaluation.runs import Method, attach_runs, method_name, parse_method
from nnunet_kd.evaluation.seeds import BySeed, Trainings, seeds_told
from nnunet_kd.evaluation.tables import Table, comparison_tables, joined
from nnunet_kd.system.files import write_atomically
from nnunet_kd.system.processes import worker_pool
from nnunet_kd.workflows.sweep.finished import FinishedSweep, find_finished

CASES_BY_SEED = "cases_by_seed.csv"

Rows = Mapping[str, Sequence[Sequence[tuple[Path, str | None]]]]
"""A method's predictions: for every seed, every fold's folder with the fold; one of each where there is no sweep."""


@dataclass(frozen=True)
class ComparisonRequest:
    """What to compare, and how.

    Attributes:
        reference: the method that others are compared with.
        methods: ``NAME=DIR``, predictions or a model folder with them; empty for a sweep.
        models: ``NAME=MODEL``, for predictions that do not lie in their model folder.
        sweep: a sweep's folder, in place of ``methods``.
        variants: of the sweep, in this order; ``None``: all with a finished run.
        seeds_apart: one row per seed of the sweep, not their average.
        teacher: the method that the gap is measured to; ``None``: ``teacher`` if there is one.
        focus: the method whose best and worst cases are shown; ``None``: the last.
        fold: whose validation cases are compared; ``None``: all of a sweep, else the methods' own.
        ground_truth, dataset_json, splits: of the references; ``None``: the dataset's.
        images, channel: for pictures; ``None``: the dataset's images.
        profiles: JSON of ``nnunet-kd profile``.
        metrics: how to measure.
        group_regex: finds the patient in a case's name, see :func:`~nnunet_kd.datasets.splits.groups_by_regex`; ``None``: every
            case is a patient.
        workers: processes.
    """

    reference: str
    methods: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    sweep: Path | None = None
    variants: tuple[str, ...] | None = None
    seeds_apart: bool = False
    teacher: str | None = None
    focus: str | None = None
    fold: str | None = None
    ground_truth: Path | None = None
    dataset_json: Path | None = None
    splits: Path | None = None
    images: Path | None = None
    channel: int = 0
    profiles: Path | None = None
    metrics: MetricOptions = field(default_factory=MetricOptions)
    group_regex: str | None = None
    workers: int = 1


@dataclass(frozen=True)
class Compared:
    """A comparison as the report takes it, and every training's values; ``None``: nothing is known of seeds."""

    report: ReportInput
    trainings: Trainings | None


def compare_predictions(request: ComparisonRequest) -> Compared:
    """Measure predictions against their references, and methods against each other.

    Raises:
        SettingsError, DataError: everything that names, folders and files can tell is checked before the first case is
            measured.
    """
    if (request.sweep is None) != bool(request.methods) or (request.sweep is not None and request.models):
        raise SettingsError("give methods as NAME=DIR (with --model, if need be), or one --sweep FOLDER; not both.")
    if (request.seeds_apart or request.variants) and request.sweep is None:
        raise SettingsError("--seeds and --variants choose what is shown of a sweep; give them with --sweep.")
    if request.sweep is not None:
        swept = find_finished(request.sweep, request.fold, request.variants)
        return _compare_sweep(request, swept)
    names = [method_name(text) for text in request.methods]
    teacher, focus = _roles(request, names)
    profiles = _profiles(request, names)
    found = attach_runs([parse_method(text, request.fold) for text in request.methods], request.models, request.fold)
    fold = request.fold or _common_fold(found)
    measured = _measure(request, found, {method.name: [[(method.predictions, fold)]] for method in found}, focus)
    averaged = {name: average_seeds(by_seed) for name, by_seed in measured.evaluations.items()}
    patients = _patients(request.group_regex, averaged[request.reference])
    comparison = compare(averaged, request.reference, teacher, patients)
    told = [*find_warnings(found, comparison.cases, measured.references.splits), *measured.warnings]
    return Compared(
        ReportInput(
            comparison=comparison,
            methods=found,
            pictures=measured.pictures,
            fold=fold,
            warnings=told,
            profiles=profiles,
            calibration=measured.calibration,
        ),
        None,
    )


def _compare_sweep(request: ComparisonRequest, swept: FinishedSweep) -> Compared:
    rows: Rows = swept.methods(request.reference, request.seeds_apart)
    teacher, focus = _roles(request, list(rows))
    profiles = _profiles(request, list(rows))
    found = swept.described(rows)
    measured = _measure(request, found, rows, focus)
    averaged = {name: average_seeds(by_seed) for name, by_seed in measured.evaluations.items()}
    patients = _patients(request.group_regex, averaged[request.reference])
    trainings = None
    if not request.seeds_apart:  # else they are rows of their own
        trained = {name: swept.by_seed(name, evaluations) for name, evaluations in measured.evaluations.items()}
        trainings = Trainings(swept.seeds, trained, request.reference, patients)
    report = ReportInput(
        comparison=compare(averaged, request.reference, teacher, patients),
        methods=found,
        pictures=measured.pictures,
        fold=", ".join(swept.folds) + (" (cases pooled)" if len(swept.folds) > 1 else ""),
        warnings=[
            *swept.warnings(measured.references.splits),
            *partly_defined(measured.evaluations),
            *measured.warnings,
        ],
        profiles=profiles,
        facts=swept.facts(request.seeds_apart),
        training=swept.training_table(),
        by_training=trainings.tables() if trainings is not None else [],
        calibration=measured.calibration,
    )
    return Compared(report, trainings)


def combine_kept(
    files: Sequence[Path],
    reference: str,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    teacher: str | None = None,
    group_regex: str | None = None,
) -> Compared:
    """Compare values that earlier comparisons kept (:data:`CASES_BY_SEED`), without their predictions.

    Args:
        files: one or several.
        reference: the method that others are compared with.
        methods: only these, in this order; ``None``: all.
        seeds: only these; ``None``: all that every method has.
        teacher: the method that the gap is measured to; ``None``: ``teacher`` if there is one.
        group_regex: see :class:`ComparisonRequest`.

    Raises:
        DataError: a file is damaged, or a case has no patient.
        SettingsError: what is asked for is not in it.
    """
    chosen = choose_trainings(read_kept(files), reference, methods, seeds)
    trainings = chosen.trainings
    by_method = {name: list(by_seed.values()) for name, by_seed in trainings.by_method.items()}
    teacher = teacher or teacher_among(list(by_method))
    check_roles(list(by_method), reference, teacher)
    averaged = {name: average_seeds(each) for name, each in by_method.items()}
    patients = _patients(group_regex, averaged[reference])
    trainings = replace(trainings, patients=patients)
    report = ReportInput(
        comparison=compare(averaged, reference, teacher, patients),
        methods=[],
        pictures=None,
        fold=None,
        warnings=[*chosen.left_out, *partly_defined(by_method)],
        facts={"Values": ", ".join(map(str, files)), "Seeds": seeds_told(trainings.seeds)},
        by_training=trainings.tables(),
    )
    return Compared(report, trainings)


def write_comparison(compared: Compared, folder: Path) -> list[str]:
    """Tables, CSV files and the report into a folder, which is made if need be; returns what was written.

    Values that an earlier comparison kept there, and this one has not, are moved aside: their predictions may be gone.
    """
    report, comparison = compared.report, compared.report.comparison
    folder.mkdir(parents=True, exist_ok=True)
    comparison.write_csv(folder / "comparison.csv")
    comparison.write_cases_csv(folder / "cases.csv")
    written = [str(folder / "report.html"), "tables.md", "tables.tex", "comparison.csv", "cases.csv"]
    trained = {} if compared.trainings is None else compared.trainings.by_method
    _keep_aside(folder / CASES_BY_SEED, trained)
    if trained:
        write_kept(trained, folder / CASES_BY_SEED)
        written.append(CASES_BY_SEED)
    tables = [*comparison_tables(comparison), *report.by_training]
    tables += [table for table in (report.calibration, report.training) if table is not None]
    for name, form in (("tables.md", "markdown"), ("tables.tex", "latex")):
        text = joined(tables, form).encode()
        write_atomically(folder / name, lambda file, text=text: file.write(text))  # type: ignore[misc]
    write_report(report, folder / "report.html")
    return written


def _keep_aside(path: Path, trained: Mapping[str, BySeed]) -> None:
    """Give a file of kept values another name if it holds trainings that are not among these, or cannot be read."""
    if not path.exists():
        return
    with contextlib.suppress(DataError):
        if all(seed in trained.get(method, {}) for method, by_seed in read_kept([path]).items() for seed in by_seed):
            return
    names = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    warnings.warn(
        f"{path} held values of other trainings. They are in {aside.name} now.", NnunetKdWarning, stacklevel=3
    )


@dataclass(frozen=True)
class _Measured:
    """Every method's evaluation by seed, the references, what pictures are made of, warnings, and calibration."""

    evaluations: dict[str, list[Evaluation]]
    references: References
    pictures: Pictures
    warnings: list[str]
    calibration: Table | None


def _roles(request: ComparisonRequest, names: Sequence[str]) -> tuple[str | None, str]:
    """Teacher and focus among the methods."""
    teacher = request.teacher or teacher_among(names)
    others = [name for name in reversed(names) if name not in (request.reference, teacher)]
    focus = request.focus or next(iter(others), names[-1])
    check_roles(names, request.reference, teacher)
    if focus not in names:
        raise SettingsError(f"--focus {focus!r} is not among the methods: {', '.join(names)}.")
    return teacher, focus


def _profiles(request: ComparisonRequest, names: Sequence[str]) -> dict[str, Profile]:
    """Of the methods, by their names."""
    if request.profiles is None:
        return {}
    found = read_profiles(request.profiles)
    if not set(found) & set(names):
        raise SettingsError(
            f"--profile {request.profiles} has {', '.join(found) or 'no model'}, and the methods are {', '.join(names)}. Give "
            f"the same names to both: nnunet-kd profile {names[-1]}=MODEL ..."
        )
    return {name: profile for name, profile in found.items() if name in names}


def _patients(group_regex: str | None, evaluation: Evaluation) -> list[str] | None:
    """The patient of every case; ``None``: every case is one."""
    if group_regex is None:
        return None
    groups = groups_by_regex(evaluation.cases, group_regex)
    return [groups[case] for case in evaluation.cases]


def _measure(request: ComparisonRequest, found: list[Method], rows: Rows, focus: str) -> _Measured:
    """Every seed's evaluation with its folds pooled; each folder of predictions is measured once."""
    references = find_references(found, request.ground_truth, request.dataset_json, request.splits)
    places = list(dict.fromkeys(part for by_seed in rows.values() for parts in by_seed for part in parts))
    pairs = [pair for place in places for pair in references.pairs(*place)]
    image_of = references.image_finder(request.images, request.channel, sorted({pair.case for pair in pairs}))
    titles = {part: name for name, by_seed in rows.items() for parts in by_seed for part in parts}
    with worker_pool(request.workers) as pool:
        calibration = _calibration(references, rows, pool)  # first: the measures below take longer, and find less
        measured = {place: references.evaluate(*place, request.metrics, pool, titles[place]) for place in places}
    evaluations = {
        name: [pool_folds([measured[part] for part in parts]) for parts in by_seed] for name, by_seed in rows.items()
    }
    return _Measured(
        evaluations,
        references,
        Pictures(references.labels, references.reader(pairs), image_of, focus),
        [f"{titles[place]}: {warning}" for place, found in measured.items() for warning in found.warnings],
        calibration,
    )


def _calibration(references: References, rows: Rows, pool: ProcessPoolExecutor | None) -> Table | None:
    """Of the methods whose every run has saved its probabilities; ``None`` if there is none."""
    saved = {
        name: all(references.has_probabilities(*part) for parts in by_seed for part in parts)
        for name, by_seed in rows.items()
    }
    found = {
        name: pool_calibrations([[references.calibration(*part, pool) for part in parts] for parts in by_seed])
        for name, by_seed in rows.items()
        if saved[name]
    }
    return calibration_table(found, [name for name in rows if not saved[name]]) if found else None


def _common_fold(methods: Sequence[Method]) -> str | None:
    """The fold whose validation folders all methods are; ``None`` if they are something else, such as a test set."""
    folds: set[Any] = {
        method.run.fold if method.run is not None and method.predictions.name == "validation" else None
        for method in methods
    }
    if len(folds - {None}) > 1:
        listed = ", ".join(f"{m.name} {m.run.fold}" for m in methods if m.run is not None)
        raise DataError(f"the validation folders are of different folds ({listed}). Compare methods of the same fold.")
    return next(iter(folds)) if len(folds) == 1 else None
