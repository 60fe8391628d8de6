"""``nnunet-kd combine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_kd.cli.comparison_output import CASES_BY_SEED, check_output, write_and_show
from nnunet_kd.cli.options import option


def combine(
    files: Annotated[
        list[Path], typer.Argument(help=f"{CASES_BY_SEED} that `nnunet-kd compare --sweep` wrote, one or several.")
    ],
    reference: Annotated[
        str, option("reference", "The method that others are compared with: the undistilled student.")
    ],
    methods: Annotated[
        str | None, option("methods", "Only these, in this order, such as teacher,student,dcd; default: all.")
    ] = None,
    seeds: Annotated[
        str | None, option("seeds", "Only these, such as 0,1; default: all that every method has.")
    ] = None,
    teacher: Annotated[
        str | None, option("teacher", "The method that the gap is measured to; default: `teacher` if there is one.")
    ] = None,
    output: Annotated[Path, option("output", "Folder for tables and report.html.")] = Path("comparison"),
) -> None:
    """Compare values that earlier comparisons kept: of other days and machines, without their predictions."""
    from nnunet_kd.evaluation.comparison import check_roles, compare, teacher_among
    from nnunet_kd.evaluation.kept import choose_trainings, read_kept
    from nnunet_kd.evaluation.pooling import average_seeds, partly_defined
    from nnunet_kd.evaluation.report import ReportInput
    from nnunet_kd.evaluation.seeds import seeds_told
    from nnunet_kd.workflows.sweep.description import parse_numbers

    check_output(output)
    kept = read_kept(files)
    wanted = None if methods is None else [name.strip() for name in methods.split(",")]
    only_seeds = None if seeds is None else [int(seed) for seed in parse_numbers(seeds, "--seeds")]
    chosen = choose_trainings(kept, reference, wanted, only_seeds)
    trainings = chosen.trainings
    by_method = {name: list(by_seed.values()) for name, by_seed in trainings.by_method.items()}
    teacher = teacher or teacher_among(list(by_method))
    check_roles(list(by_method), reference, teacher)
    comparison = compare({name: average_seeds(each) for name, each in by_method.items()}, reference, teacher)
    report = ReportInput(
        comparison=comparison,
        methods=[],
        pictures=None,
        fold=None,
        warnings=[*chosen.left_out, *partly_defined(by_method)],
        facts={"Values": ", ".join(map(str, files)), "Seeds": seeds_told(trainings.seeds)},
        by_training=trainings.tables(),
    )
    write_and_show(report, trainings, output)
