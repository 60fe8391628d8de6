"""The ``nnunet-kd`` command: one module per command group, each with a Typer function.

Arguments in, one call, output; nothing else imports it.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from nnunet_kd import __version__
from nnunet_kd.errors import DataError, MissingRequirement, NnunetKdError, NnunetKdWarning
from nnunet_kd.system.names import name_as_text, name_problem
from nnunet_kd.system.requirements import REQUIRED

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
    """Add every command, once however often it is called."""
    if app.registered_commands:
        return
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
        shrink,
        soften,
        split,
        sweep,
        train,
        weigh,
    )
    from nnunet_kd.cli.options import SeveralFolds

    app.command("doctor")(doctor.doctor)
    app.command("shrink")(shrink.shrink)
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
    """Entry point: errors and warnings made for people are printed as one paragraph; errors become exit codes."""
    _register()
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except NnunetKdError as error:
        _stop(error)
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:  # a part of it may be missing through a mistake of ours
            raise
        _stop(MissingRequirement(f"{error}. `nnunet-kd doctor` says which packages are missing and how to get them."))
    except UnicodeEncodeError as error:
        problem = name_problem(str(error.object))
        if problem is None:
            raise
        _stop(DataError(f"{name_as_text(str(error.object))} {problem}."))


def _stop(error: NnunetKdError) -> None:
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    sys.exit(error.exit_code)


_show_other_warning = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, NnunetKdWarning):
        Console(stderr=True, highlight=False).print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
    else:
        _show_other_warning(message, category, filename, lineno, file, line)
