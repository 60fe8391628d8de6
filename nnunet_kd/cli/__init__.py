"""The ``nnunet-kd`` command: one module per command group, each with a Typer function."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from nnunet_kd.errors import NnunetKdError

app = typer.Typer(
    name="nnunet-kd",
    help="Knowledge distillation for nnU-Net v2: small students from trained nnU-Nets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _register() -> None:
    from nnunet_kd.cli import (
        bench,
        combine,
        compare,
        conform,
        convert,
        demo,
        doctor,
        evaluate,
        export,
        plan,
        predict,
        profile,
        split,
        sweep,
        train,
        weigh,
    )

    app.command("doctor")(doctor.doctor)
    app.command("plan")(plan.plan)
    app.command("train")(train.train)
    app.command("weigh")(weigh.weigh)
    app.command("sweep")(sweep.sweep)
    app.command("evaluate")(evaluate.evaluate)
    app.command("compare")(compare.compare)
    app.command("combine")(combine.combine)
    app.command("profile")(profile.profile)
    app.add_typer(bench.app, name="bench")
    app.command("demo")(demo.demo)
    app.add_typer(convert.app, name="convert")
    app.command("split")(split.split)
    app.command("export")(export.export)
    app.command("predict")(predict.predict)
    app.command("conform")(conform.conform)


def main() -> None:
    """Entry point: errors made for people are printed as one paragraph and become exit codes."""
    _register()
    try:
        app()
    except NnunetKdError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
