"""The ``nnunet-kd`` command: one module per command group, each with a Typer function.

Arguments in, one call, output; nothing else imports it.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from nnunet_kd import __version__
from nnunet_kd.errors import NnunetKdError

app = typer.Typer(
    name="nnunet-kd",
    help="Knowledge distillation for nnU-Net v2: small students from trained nnU-Nets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nnunet-kd {__version__}")
        raise typer.Exit


@app.callback()
def _nnunet_kd(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


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
        inherit,
        plan,
        predict,
        profile,
        recipes,
        soften,
        split,
        sweep,
        train,
        weigh,
    )
    from nnunet_kd.cli.options import SeveralFolds

    app.command("doctor")(doctor.doctor)
    app.command("plan")(plan.plan)
    app.command("train")(train.train)
    app.command("inherit")(inherit.inherit)
    app.command("soften", cls=SeveralFolds)(soften.soften)
    app.command("weigh")(weigh.weigh)
    app.add_typer(recipes.app, name="recipes")
    app.command("sweep", cls=SeveralFolds)(sweep.sweep)
    app.command("evaluate")(evaluate.evaluate)
    app.command("compare")(compare.compare)
    app.command("combine")(combine.combine)
    app.command("profile")(profile.profile)
    app.add_typer(bench.app, name="bench")
    app.command("demo")(demo.demo)
    app.add_typer(convert.app, name="convert")
    app.command("split")(split.split)
    app.command("export", cls=SeveralFolds)(export.export)
    app.command("predict", cls=SeveralFolds)(predict.predict)
    app.command("conform", cls=SeveralFolds)(conform.conform)


def main() -> None:
    """Entry point: errors made for people are printed as one paragraph and become exit codes."""
    _register()
    try:
        app()
    except NnunetKdError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
