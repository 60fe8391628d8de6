"""What an evaluation found: values per case and class, their means, and the files they are written to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_kd.evaluation.metrics import COUNTS, METRICS, MetricOptions
from nnunet_kd.system.files import write_atomically, write_csv

Values = npt.NDArray[np.float64]
OVERALL = "overall"
CASE_COLUMNS = ("case", "class", *(metric.name for metric in METRICS), *COUNTS)
"""Of a CSV file with one row per case and class."""


@dataclass(frozen=True)
class Summary:
    """Mean over cases.

    Attributes:
        mean, standard_error: of the cases in which the metric is defined; the error is NaN for fewer than two.
        cases: how many these are.
        left_out: how many are not, because a mask is empty.
    """

    mean: float
    standard_error: float
    cases: int
    left_out: int


@dataclass(frozen=True)
class Evaluation:
    """One folder of predictions against the reference.

    Attributes:
        prediction_folder, reference_folder: where the segmentations were read.
        cases: identifiers, sorted.
        classes: names of labels or regions, in the order of ``dataset.json``.
        values: for every metric and count an array (cases, classes); NaN where not defined.
        options: conventions used.
        folders_by_case: where predictions lie that are not in ``prediction_folder``, of pooled folds.
        warnings: about files that were compared though they are not quite as they should be.
    """

    prediction_folder: Path
    reference_folder: Path
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    values: Mapping[str, Values]
    options: MetricOptions
    folders_by_case: Mapping[str, Path] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def folder_of(self, case: str) -> Path:
        """The folder with a case's prediction."""
        return self.folders_by_case.get(case, self.prediction_folder)

    def per_case(self, metric: str, class_name: str = OVERALL) -> Values:
        """Values of one class by case (cases,); ``overall`` is the mean over the classes defined in that case."""
        (values,) = paired_values([self], metric, class_name)
        return values

    def summary(self, metric: str, class_name: str = OVERALL) -> Summary:
        """Mean and standard error of the mean over cases."""
        return summarise(self.per_case(metric, class_name))

    def empty_counts(self, class_name: str) -> dict[str, int]:
        """Cases in which both masks, only the reference, or only the prediction are empty."""
        column = self.classes.index(class_name)
        no_reference = self.values["reference_volume"][:, column] == 0
        no_prediction = self.values["prediction_volume"][:, column] == 0
        return {
            "both_empty": int((no_reference & no_prediction).sum()),
            "only_reference_empty": int((no_reference & ~no_prediction).sum()),
            "only_prediction_empty": int((~no_reference & no_prediction).sum()),
        }

    def case_rows(self) -> Iterator[list[str]]:
        """Cells of :meth:`write_csv`, row by row."""
        for row, case in enumerate(self.cases):
            for column, class_name in enumerate(self.classes):
                cells = [self.values[name][row, column] for name in CASE_COLUMNS[2:]]
                yield [case, class_name, *map(csv_number, cells)]

    def write_csv(self, path: Path) -> None:
        """One row per case and class, all metrics and counts as columns, with all digits; undefined values are left blank."""
        write_csv(path, CASE_COLUMNS, self.case_rows())

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: undefined values are ``null``."""
        names = CASE_COLUMNS[2:]
        return {
            "prediction_folder": str(self.prediction_folder),
            "reference_folder": str(self.reference_folder),
            "units": {"fractions": "0 to 1", "distances": "mm", "volumes": "ml"},
            "options": asdict(self.options),
            "overall": {metric.name: self._summary_as_dict(metric.name, OVERALL) for metric in METRICS},
            "classes": {
                class_name: {metric.name: self._summary_as_dict(metric.name, class_name) for metric in METRICS}
                | {"empty": self.empty_counts(class_name)}
                for class_name in self.classes
            },
            "cases": {
                case: {
                    class_name: {name: _json_number(self.values[name][row, column]) for name in names}
                    for column, class_name in enumerate(self.classes)
                }
                for row, case in enumerate(self.cases)
            },
        }

    def write_json(self, path: Path) -> None:
        """Write :meth:`as_dict`."""
        text = json.dumps(self.as_dict(), indent=2)
        write_atomically(path, lambda file: file.write(text.encode()))

    def _summary_as_dict(self, metric: str, class_name: str) -> dict[str, float | int | None]:
        summary = self.summary(metric, class_name)
        return {
            "mean": _json_number(summary.mean),
            "standard_error": _json_number(summary.standard_error),
            "cases": summary.cases,
            "left_out": summary.left_out,
        }


def paired_values(evaluations: Sequence[Evaluation], metric: str, class_name: str = OVERALL) -> list[Values]:
    """Values by case (cases,) of methods that are to be subtracted from each other.

    ``overall`` is the mean over the classes that are defined in all of them: a method must not gain because a class in
    which it failed has no distance and drops out of its mean alone.
    """
    arrays = [evaluation.values[metric] for evaluation in evaluations]
    if class_name != OVERALL:
        columns = [evaluation.classes.index(class_name) for evaluation in evaluations]
        return [np.asarray(values[:, column], dtype=np.float64) for values, column in zip(arrays, columns, strict=True)]
    defined = ~np.any([np.isnan(values) for values in arrays], axis=0)
    counts = defined.sum(axis=1)
    sums = [np.where(defined, values, 0.0).sum(axis=1) for values in arrays]
    return [np.divide(total, counts, out=np.full(len(total), np.nan), where=counts > 0) for total in sums]


def summarise(values: Values) -> Summary:
    """Mean and standard error (sample standard deviation over the root of n) of what is not NaN."""
    defined = values[~np.isnan(values)]
    n = defined.size
    mean = float(defined.mean()) if n else float("nan")
    error = float(defined.std(ddof=1) / math.sqrt(n)) if n > 1 else float("nan")
    return Summary(mean, error, n, values.size - n)


def csv_number(value: float) -> str:
    """The shortest text that gives back the very number: rounding would break ties, which rank tests count."""
    return "" if math.isnan(value) else repr(float(value)).removesuffix(".0")


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
