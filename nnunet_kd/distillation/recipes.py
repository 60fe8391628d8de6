"""The recipes that travel with the package: what they are called, what they say, and copies of them."""

from __future__ import annotations

from pathlib import Path

from nnunet_kd.distillation.settings_model import did_you_mean
from nnunet_kd.errors import SettingsError
from nnunet_kd.system.files import write_atomically
from nnunet_kd.system.shipped import shipped_folder


def recipe_names() -> list[str]:
    """The shipped recipes (``plans/recipes/*.yaml``), without their ending."""
    return sorted(path.stem for path in (shipped_folder("plans") / "recipes").glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        SettingsError: no recipe is called so; names the nearest one.
    """
    if name not in recipe_names():
        raise SettingsError(
            f"{name!r} is no recipe{did_you_mean(name, recipe_names())}. The recipes: {', '.join(recipe_names())}."
        )
    return shipped_folder("plans") / "recipes" / f"{name}.yaml"


def recipe_header(name: str) -> tuple[str, str]:
    """What the comment at the top of a recipe says, and the command that trains with it.

    Raises:
        SettingsError: no recipe is called so.
    """
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    comment = [line[1:].strip() for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
    about, _, command = " ".join(comment).partition(" Command: ")
    return about, command


def copy_recipe(name: str, file: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a copy of a recipe to start one's own from.

    Args:
        name: of the recipe.
        file: where to; a folder gets ``NAME.yaml``, as the current one does by default.
        overwrite: replace what lies there.

    Returns:
        The copy.

    Raises:
        SettingsError: no recipe is called so, or something lies there already.
        MissingRequirement: the copy cannot be written.
    """
    recipe = recipe_path(name)
    copy = Path() if file is None else file
    copy = copy / recipe.name if copy.is_dir() else copy
    if copy.exists() and not overwrite:
        raise SettingsError(f"{copy} exists already. Choose another name, or replace it with --overwrite.")
    content = recipe.read_bytes()
    write_atomically(copy, lambda opened: opened.write(content))
    return copy
