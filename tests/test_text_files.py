"""Text is read and written as UTF-8 on every system: elsewhere than on Linux, Python takes another encoding unless told."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for folder in (ROOT / "nnunet_kd", ROOT / "runtime" / "src", ROOT / "trainers")
    for path in folder.rglob("*.py")
)
MODE = re.compile(r"[rwaxbt+]{1,3}")


def _calls_without_encoding(source: str) -> Iterator[int]:
    """Lines of calls that open a text file and name no encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name in ("read_text", "write_text") or (name == "open" and _opens_text(node)):
            yield node.lineno


def _opens_text(call: ast.Call) -> bool:
    """Whether a call of ``open`` is that of a path or the built-in one; those of archives and arrays take no mode first."""
    of_path = isinstance(call.func, ast.Attribute)
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes += call.args[0 if of_path else 1 :][:1]
    found = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    if found and MODE.fullmatch(found[0]):
        return "b" not in found[0] and not any(keyword.arg == "urlpath" for keyword in call.keywords)
    return not modes and (bool(call.args) or of_path) and not any(keyword.arg == "urlpath" for keyword in call.keywords)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(content)", True),
        ("path.open()", True),
        ("path.open('a', buffering=1)", True),
        ("path.open('rb')", False),
        ("path.open(mode='wb')", False),
        ("path.open(newline='')", True),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, 'rb')", False),
        ("Image.open(file)", False),
        ("archive.open('data.npy')", False),
        ("blosc2.open(urlpath=str(path), mode='r')", False),
    ],
)
def test_what_is_looked_for(line: str, found: bool) -> None:
    assert bool(list(_calls_without_encoding(line))) == found


def test_text_files_name_their_encoding() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for line in _calls_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert FILES
    assert not wrong, "\n".join(wrong)
