"""Write the reference pages from what they describe: settings, recipes, commands, public names.

    python docs/write_reference.py             # writes docs/reference-*.md
    python docs/write_reference.py --check     # exit code 1 if one of them is not what would be written

What a page says is said in the models, the recipes' comments, the commands' help and the docstrings: change it there.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo
from typer.utils import get_params_from_function

DOCS = Path(__file__).resolve().parent
BY = "<!-- Written by docs/write_reference.py. Change what it reads instead. -->\n\n"


def linked(text: str) -> str:
    """A docstring or description as Markdown: names as code, pages of the documentation as links."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    # what Markdown would take for tags and emphasis, outside of code
    text = re.sub(r"`[^`]*`|[<*]", lambda part: {"<": "&lt;", "*": r"\*"}.get(part[0], part[0]), text)
    return re.sub(r"\bdocs/([\w-]+)\.md\b", lambda page: f"[{_subject(page[1])}]({page[1]}.md)", text)


def _subject(page: str) -> str:
    return re.sub("^(explanation|how-to|reference|tutorial)-", "", page).replace("-", " ")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["-"] * len(header), *rows]
    return "".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def first_paragraph(documented: object) -> str:
    """Of a docstring, in one line."""
    return linked(" ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split()))


# Settings


def kind(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "keys below"
    if schema["type"] == "array":
        return f"list of: {kind(schema['items'])}"
    word = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}[
        schema["type"]
    ]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return word + (f" {', '.join(bounds)}" if bounds else "")


def default(schema: Mapping[str, Any]) -> str:
    """A default as one writes it in a settings file; empty where leaving the key out says something else."""
    value = schema.get("default")
    if value is None or isinstance(value, dict | list):
        return ""
    return f"`{yaml.safe_dump(value).removesuffix('...' + chr(10)).strip()}`"


def keys(properties: Mapping[str, Any], parent: str = "") -> str:
    """The table of a model's keys, after a line that says how one writes them."""
    rows = [
        (f"`{name}`", kind(schema), default(schema), linked(schema.get("description", "")))
        for name, schema in properties.items()
    ]
    written = f"Keys of `{parent}`, for example `--set {parent}.{next(iter(properties))}=VALUE`:\n\n" if parent else ""
    return written + table(["key", "value", "default", "meaning"], rows)


def refused_keys(model: type[BaseModel]) -> set[str]:
    """Keys that a model has from its base and refuses; they are never saved either."""
    return {name for name, field in model.model_fields.items() if field.exclude}


def settings_page() -> str:
    """Every setting: key, type, default, meaning."""
    from nnunet_kd.distillation import settings_sources
    from nnunet_kd.distillation.objectives import OBJECTIVES
    from nnunet_kd.distillation.objectives.base import ObjectiveSettings
    from nnunet_kd.distillation.settings import Settings, TeacherSettings
    from nnunet_kd.distillation.settings_model import Schedule
    from nnunet_kd.distillation.starts.options import InheritanceSettings

    title, _, sources = linked(inspect.getdoc(settings_sources) or "").partition("\n\n")
    shared = ObjectiveSettings.model_json_schema()["properties"]
    parts = [
        f"# Settings\n\n{BY}{first_paragraph(Settings)}",
        f"## {title.rstrip('.')}\n\n{sources}",
        f"## The run\n\n{keys(Settings.model_json_schema()['properties'])}",
        f"## Teacher\n\n{first_paragraph(TeacherSettings)}\n\n"
        + keys(TeacherSettings.model_json_schema()["properties"], "teacher"),
        f"## Start inside the teacher\n\n{first_paragraph(InheritanceSettings)}\n\n"
        + keys(InheritanceSettings.model_json_schema()["properties"], "inheritance"),
        f"## Every objective\n\n{first_paragraph(ObjectiveSettings)} `NAME` is one of the objectives below.\n\n"
        + keys(shared, "objectives.NAME")
        + "".join(
            f"\n`{name}` has no `{key}`: {(objective.Settings.model_fields[key].description or '').removeprefix('refused: ')}.\n"
            for name, objective in OBJECTIVES.items()
            for key in sorted(refused_keys(objective.Settings))
        ),
        f"### Schedule\n\n{' '.join((inspect.getdoc(Schedule) or '').split(chr(10) * 2 + 'Attributes')[0].split())}\n\n"
        + keys(Schedule.model_json_schema()["properties"], "objectives.NAME.schedule"),
    ]
    for name, objective in OBJECTIVES.items():
        own = objective.Settings.model_json_schema()["properties"]
        refused = refused_keys(objective.Settings)
        own = {key: schema for key, schema in own.items() if key == "weight" or schema != shared.get(key)}
        own = {key: schema for key, schema in own.items() if key not in refused}
        parts.append(
            f"## Objective {name}\n\n{first_paragraph(objective)}\n\n{first_paragraph(objective.Settings)}\n\n"
            + keys(own, f"objectives.{name}")
        )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


# Recipes


def recipes_page() -> str:
    """Every recipe: what it is, the command, its settings."""
    from nnunet_kd.distillation.recipes import recipe_header, recipe_names, recipe_path

    parts = [
        f"# Recipes\n\n{BY}Settings that come with the package. `nnunet-kd recipes copy NAME` writes one to change, and "
        "`nnunet-kd train --recipe FILE` trains with it. What each key means: [settings](reference-settings.md)."
    ]
    for name in recipe_names():
        about, command = recipe_header(name)
        lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
        content = "\n".join(line for line in lines if line[:1] != "#").strip()
        parts.append(f"## {name}\n\n{linked(about)}\n\n```bash\n{command}\n```\n\n```yaml\n{content}\n```")
    return "\n\n".join(parts) + "\n"


# Commands


def commands(app: typer.Typer, path: str) -> Iterator[tuple[str, Callable[..., object]]]:
    """Every command below one, with its full name and its function."""
    for command in app.registered_commands:
        assert command.name
        assert command.callback
        yield f"{path} {command.name}", command.callback
    for group in app.registered_groups:
        assert group.typer_instance
        yield from commands(group.typer_instance, f"{path} {group.name}")


def value_of(annotation: Any, told: OptionInfo) -> str:
    """What follows an option: its choices or its kind; nothing after a switch."""
    several = [value_of(one, told) for one in get_args(annotation) if one is not type(None)]
    if several:
        return " or ".join(several) + (", repeatable" if get_origin(annotation) is list else "")
    if annotation is bool:
        return ""
    if issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    kinds = {int: "whole number", float: "number", Path: "path", str: "text"}
    return (told.metavar or kinds[annotation]) + (f" ≥ {told.min:g}" if told.min is not None else "")


def default_of(value: object) -> str:
    """An option's default as one types it."""
    if value is ...:
        return "required"
    if value is None or value is False or value in ([], ()):
        return ""
    if value is True:
        return "yes"
    several = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"`{one.value if isinstance(one, Enum) else one}`" for one in several)


def command_section(name: str, function: Callable[..., object]) -> str:
    """One command: what it does, how it is called, its arguments and options."""
    words, arguments, options = [], [], []
    for parameter in get_params_from_function(function).values():
        told = parameter.default
        assert isinstance(told, ArgumentInfo | OptionInfo), f"{name}: {parameter.name} is not described"
        meaning, value = linked(told.help or ""), default_of(told.default)
        if isinstance(told, ArgumentInfo):
            word = (told.metavar or parameter.name.upper()).strip("[]")
            words.append(word if value == "required" else f"[{word}]")
            arguments.append((f"`{word}`", meaning, value))
        elif not told.hidden:
            spellings = told.param_decls or (f"--{parameter.name.replace('_', '-')}",)
            spelled = ", ".join(f"`{spelling.strip(' /')}`" for spelling in spellings)
            options.append((spelled, value_of(parameter.annotation, told), meaning, value))
    call = " ".join([name, *words, *(["[OPTIONS]"] if options else [])])
    parts = [f"## {name}", linked(inspect.getdoc(function) or ""), f"```text\n{call}\n```"]
    parts += [table(["argument", "meaning", "default"], arguments)] if arguments else []
    parts += [table(["option", "value", "meaning", "default"], options)] if options else []
    return "\n\n".join(part.rstrip() for part in parts)


def parser_section(parser: argparse.ArgumentParser) -> str:
    """A command of ``argparse``, in the form of :func:`command_section`; its help says the defaults."""
    words, arguments, options = [], [], []
    for action in parser._actions:
        meaning = linked(action.help or "")
        if not action.option_strings:
            words.append(f"{action.metavar}{'...' if action.nargs == '+' else ''}")
            arguments.append((f"`{action.metavar}`", meaning))
        elif action.dest not in ("help", "version"):
            takes = ", ".join(f"`{choice}`" for choice in action.choices or ()) or (action.metavar or "")
            long_first = sorted(action.option_strings, key=lambda spelling: not spelling.startswith("--"))
            spelled = ", ".join(f"`{spelling}`" for spelling in long_first)
            options.append((spelled, str(takes), f"{meaning} (required)" if action.required else meaning))
    call = " ".join([parser.prog, *words, "[OPTIONS]"])
    parts = [f"## {parser.prog}", linked(parser.description or ""), f"```text\n{call}\n```"]
    parts += [table(["argument", "meaning"], arguments), table(["option", "value", "meaning"], options)]
    return "\n\n".join(part.rstrip() for part in parts)


def commands_page() -> str:
    """Every command: arguments, options in all spellings, defaults."""
    from nnunet_kd import cli
    from nnunet_kd_runtime.command import parser

    cli._register()
    found = list(commands(cli.app, "nnunet-kd"))
    runtime = parser()
    rows = [(f"[`{name}`](#{name.replace(' ', '-')})", first_paragraph(function)) for name, function in found]
    rows.append((f"[`{runtime.prog}`](#{runtime.prog})", linked(runtime.description or "")))
    parts = [
        f"# Commands\n\n{BY}`nnunet-kd COMMAND --help` says the same in a terminal. "
        "All spellings in a row mean the same option; the first one is its long name. "
        "`kd-segment` is the command of `runtime/`, a distribution of its own.",
        table(["command", "what it does"], rows),
        *(command_section(name, function) for name, function in found),
        parser_section(runtime),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


# Public names


def api_page() -> str:
    """The public names, for mkdocstrings, which reads their docstrings when the site is built."""
    import nnunet_kd
    from nnunet_kd import losses

    def section(title: str, about: str, names: Iterable[str]) -> str:
        return f"## {title}\n\n{about}\n\n" + "\n\n".join(f"::: {name}" for name in names)

    base = "nnunet_kd.distillation.objectives.base"
    elsewhere = {"Objective", "NnunetKdError", *losses.__all__}
    functions = [f"nnunet_kd.{module}.{name}" for name, module in nnunet_kd._PUBLIC.items() if name not in elsewhere]
    parts = [
        f"# Python interface\n\n{BY}The site shows signatures and docstrings here; `help(NAME)` shows them in Python. "
        "The names of the second section are also found in `nnunet_kd` itself.",
        section(
            "Losses and wavelets",
            "`nnunet_kd.losses` needs neither nnU-Net nor settings: tensors in, a scalar out.",
            (f"nnunet_kd.losses.{name}" for name in losses.__all__),
        ),
        section("Models, training, evaluation", "What the commands call.", sorted(functions)),
        section(
            "Objectives of your own",
            "[How to add one](how-to-add-an-objective.md).",
            (f"{base}.{name}" for name in ("Objective", "ObjectiveSettings", "NetworkPair", "StepOutputs")),
        ),
        section("Without PyTorch", "Of the distribution nnunet-kd-runtime.", ["nnunet_kd_runtime.arrays.segment"]),
        section("Errors", "Each has an exit code of its own.", ["nnunet_kd.errors"]),
    ]
    return "\n\n".join(parts) + "\n"


PAGES = {
    "reference-settings.md": settings_page,
    "reference-recipes.md": recipes_page,
    "reference-commands.md": commands_page,
    "reference-api.md": api_page,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or say which are not current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is not current")
    check = parser.parse_args(arguments).check
    stale = 0
    for name, page in PAGES.items():
        path, content = DOCS / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        stale += 1
        print(f"docs/{name}: {'not current; run python docs/write_reference.py' if check else 'written'}")
        if not check:
            path.write_text(content, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
