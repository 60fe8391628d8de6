"""``nnunet-kd split``: splits by patient for any nnU-Net dataset."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from nnunet_kd.cli.options import option
from nnunet_kd.datasets.case import FOLDS, SEED
from nnunet_kd.system.counts import counted


def split(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="id (501) or full name (Dataset501_BraTS2024)")],
    group_regex: Annotated[
        str,
        option("group-regex", "finds the patient in a case's name: its first group, or all it matches"),
    ],
    number: Annotated[int, typer.Option("--number-of-folds", help="how many folds")] = FOLDS,
    former_number: Annotated[int | None, typer.Option("--folds", hidden=True, help="its name in 0.1.0")] = None,
    holdout: Annotated[
        float | None,
        option("holdout", "one split with this share of the patients in validation, not folds"),
    ] = None,
    seed: Annotated[int, option("seed", "of the shuffle")] = SEED,
    overwrite: Annotated[bool, option("overwrite", "replace other splits that are there")] = False,
) -> None:
    """Write splits_final.json so that all cases of a patient are on one side."""
    from nnunet_kd.datasets.splits import (
        grouped_folds,
        grouped_holdout,
        groups_by_regex,
        training_cases,
        write_splits,
    )

    name, cases = training_cases(dataset)
    groups = groups_by_regex(cases, group_regex)
    count = number if former_number is None else former_number
    splits = grouped_folds(groups, count, seed) if holdout is None else grouped_holdout(groups, holdout, seed)
    files = write_splits(name, splits, overwrite=overwrite)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{name}: {counted(len(cases), 'case')} of {counted(len(set(groups.values())), 'patient')}")
    for number, fold in enumerate(splits):
        console.print(f"fold {number}: {len(fold['train'])} training, {counted(len(fold['val']), 'validation case')}")
    if holdout is not None:
        console.print(
            "Train fold 0 only: nnU-Net makes up other folds by itself, without regard to patients.", style="yellow"
        )
    for path in files:
        console.print(f"written: {path}", soft_wrap=True)
