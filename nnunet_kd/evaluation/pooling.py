"""Evaluations of several runs of one method as one: folds side by side, seeds averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nnunet_kd.errors import DataError
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.results import Evaluation


def pool_folds(folds: Sequence[Evaluation]) -> Evaluation:
    """All folds' cases, sorted.

    Args:
        folds: of one training each, with the same classes and options.

    Raises:
        DataError: a case is in two folds, or classes or options differ.
    """
    first = folds[0]
    if len(folds) == 1:
        return first
    cases = [case for fold in folds for case in fold.cases]
    if twice := sorted({case for case in cases if cases.count(case) > 1}):
        raise DataError(
            f"{', '.join(twice[:8])}: validated in more than one of {', '.join(str(fold.prediction_folder) for fold in folds)}. "
            f"Cases of folds can be pooled if every case is in one of them; compare one fold with -f."
        )
    _check_alike(folds)
    order = sorted(range(len(cases)), key=cases.__getitem__)
    values = {name: np.concatenate([fold.values[name] for fold in folds])[order] for name in first.values}
    folders = {case: fold.folder_of(case) for fold in folds for case in fold.cases}
    return replace(first, cases=tuple(cases[place] for place in order), values=values, folders_by_case=folders)


def average_seeds(seeds: Sequence[Evaluation]) -> Evaluation:
    """Every value (cases, classes) averaged over the seeds in which it is defined; NaN where it is in none.

    Predictions are the first seed's.

    Args:
        seeds: of the same cases, classes and options.

    Raises:
        DataError: cases, classes or options differ.
    """
    first = seeds[0]
    if len(seeds) == 1:
        return first
    _check_alike(seeds)
    if any(seed.cases != first.cases for seed in seeds):
        raise DataError(f"the seeds of {first.prediction_folder} were evaluated on different cases.")
    values = {}
    for name in first.values:
        stacked = np.stack([seed.values[name] for seed in seeds])
        defined = (~np.isnan(stacked)).sum(axis=0)
        values[name] = np.divide(
            np.nansum(stacked, axis=0), defined, out=np.full(stacked.shape[1:], np.nan), where=defined > 0
        )
    return replace(first, values=values)


def partly_defined(methods: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    """Warnings about values that are defined in some seeds and not in others, because a mask is empty there.

    Args:
        methods: the seeds' evaluations by method.
    """
    warnings = []
    for name, seeds in methods.items():
        for metric in METRICS:
            defined = np.stack([~np.isnan(seed.values[metric.name]) for seed in seeds])
            if count := int((defined.any(axis=0) & ~defined.all(axis=0)).sum()):
                warnings.append(
                    f"{name}: {metric.title} of {count} masks is defined in some seeds only, and is the mean over those."
                )
    return warnings


def _check_alike(evaluations: Sequence[Evaluation]) -> None:
    first = evaluations[0]
    if any((other.classes, other.options) != (first.classes, first.options) for other in evaluations):
        raise DataError(f"{first.prediction_folder} and the other runs were evaluated with other classes or options.")
