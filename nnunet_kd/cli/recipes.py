"""``nnunet-kd recipes``: the settings files that travel with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nnunet_kd.cli.options import option
from nnunet_kd.distillation.recipes import copy_recipe, recipe_header, recipe_names, recipe_path

app = typer.Typer(help="Settings that come with the package: list, show and copy them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="of a recipe; `nnunet-kd recipes list` names them")]


@app.command("list")
def list_recipes() -> None:
    """Name every recipe and say what it is for."""
    table = Table("recipe", "what it is")
    for name in recipe_names():
        about, _ = recipe_header(name)
        table.add_row(name, about)
    Console(highlight=False, markup=False, emoji=False).print(table)


@app.command("show")
def show_recipe(name: Name) -> None:
    """Print a recipe: its comment, the command that trains with it, and its settings."""
    typer.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)


@app.command("copy")
def copy_a_recipe(
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="where to; default: NAME.yaml in the current folder")
    ] = None,
    overwrite: Annotated[bool, option("overwrite", "replace FILE")] = False,
) -> None:
    """Copy a recipe, to change it and train with it."""
    copy = copy_recipe(name, file, overwrite=overwrite)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"written: {copy}", soft_wrap=True)
    console.print(f"train with it: nnunet-kd train DATASET CONFIGURATION FOLD --recipe {copy}", soft_wrap=True)
