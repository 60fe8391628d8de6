"""``nnunet-kd combine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_kd.cli.comparison_output import GroupRegex, write_and_show
from nnunet_kd.cli.options import option
from nnunet_kd.errors import SettingsError
from nnunet_kd.system.files import check_output


def combine(
    files: Annotated[
        list[Path], typer.Argument(help="cases_by_seed.csv that `nnunet-kd compare --sweep` wrote, one or several.")
    ],
    reference: Annotated[
        str, option("reference", "The method that others are compared with, for example inherited or student.")
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
    group_regex: GroupRegex = None,
    output: Annotated[Path, option("output", "Folder for tables and report.html.")] = Path("comparison"),
) -> None:
    """Compare values that earlier comparisons kept: of other days and machines, without their predictions."""
    from nnunet_kd.workflows.comparison import CASES_BY_SEED, combine_kept
    from nnunet_kd.workflows.sweep.description import parse_seeds

    check_output(output)
    if (output / CASES_BY_SEED).resolve() in {file.resolve() for file in files}:
        raise SettingsError(f"-o {output} would overwrite the input {output / CASES_BY_SEED}. Give another folder.")
    wanted = None if methods is None else [name.strip() for name in methods.split(",")]
    only_seeds = None if seeds is None else parse_seeds(seeds)
    write_and_show(combine_kept(files, reference, wanted, only_seeds, teacher, group_regex), output)
