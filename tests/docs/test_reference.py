"""The reference pages say what the models, recipes, commands and public names say now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import check_prose
import pytest
import write_reference
from pydantic import BaseModel

import nnunet_kd
from nnunet_kd import losses
from nnunet_kd.distillation.objectives import OBJECTIVES
from nnunet_kd.distillation.recipes import recipe_names
from nnunet_kd.distillation.settings import Settings
from nnunet_kd_runtime.command import parser
from tests.cli.test_options import commands, spellings


@pytest.mark.parametrize("name", write_reference.PAGES)
def test_a_reference_page_is_current(name: str) -> None:
    written = (write_reference.DOCS / name).read_text(encoding="utf-8")
    assert written == write_reference.PAGES[name](), "run python docs/write_reference.py"
    assert f"docs/{name}" in check_prose.EXEMPT


def fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner)


def test_every_setting_has_a_description() -> None:
    found = [name for name, field in fields(Settings) if not field.description and "ObjectivesSettings." not in name]
    assert found == []


def test_the_page_names_every_key() -> None:
    page = write_reference.settings_page()
    keys = {name.split(".")[1] for name, _ in fields(Settings)} - set(OBJECTIVES)
    assert [key for key in sorted(keys) if f"| `{key}` |" not in page] == []
    assert [name for name in OBJECTIVES if f"Keys of `objectives.{name}`" not in page] == []


def test_the_page_tells_nobody_to_set_what_is_refused() -> None:
    page = write_reference.settings_page()
    refused = [
        f"{name}.{key}" for name, one in OBJECTIVES.items() for key in write_reference.refused_keys(one.Settings)
    ]
    assert refused == ["soft.weight"]
    section = page.split("## Objective soft\n")[1].split("\n## ")[0]
    assert "| `weight` |" not in section
    assert "--set objectives.soft.alpha=VALUE" in section
    assert "objectives.soft.weight" not in page
    assert "`soft` has no `weight`: see `alpha`." in page


def test_the_page_names_every_command_with_every_spelling() -> None:
    sections = dict(part.split("\n", 1) for part in write_reference.commands_page().split("\n## ")[1:])
    for name, command in commands():
        section = sections.pop(f"nnunet-kd {name}")
        for given in spellings(command):
            (row,) = [
                line
                for line in section.splitlines()
                if line.startswith(f"| `{given[0]}")
                and set(re.findall(r"[`/](-[^`/]+)", line.split("|")[1])) == {*given}
            ]
            assert row.split("|")[3].strip(), f"{name} {given} is not described"
    runtime = sections.pop("kd-segment")
    assert sections == {}
    told = parser().format_help()
    for spelling in set(re.findall(r"(?:^  |, )(--?[a-z][\w-]*)", told, re.MULTILINE)) - {"--help", "-h", "--version"}:
        (row,) = [line for line in runtime.splitlines() if line.startswith("|") and f"`{spelling}`" in line]
        assert row.split("|")[3].strip(), f"kd-segment {spelling} is not described"


def test_the_page_names_every_recipe_and_public_name() -> None:
    recipes = write_reference.recipes_page()
    assert [name for name in recipe_names() if f"\n## {name}\n" not in recipes] == []
    interface = write_reference.api_page()
    names = {*nnunet_kd.__all__, *losses.__all__} - {"__version__", "NnunetKdError"}  # errors: the whole module
    assert [name for name in sorted(names) if f".{name}\n" not in interface] == []
    assert "::: nnunet_kd.errors" in interface


def test_docstrings_become_markdown() -> None:
    text = "Of :class:`~a.b.Loss`, ``x * y``, TR<METHOD> and checkpoint_*.pth (docs/explanation-security.md)."
    assert write_reference.linked(text) == (
        r"Of `Loss`, `x * y`, TR&lt;METHOD> and checkpoint_\*.pth ([security](explanation-security.md))."
    )
