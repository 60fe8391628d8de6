"""Subpackages import one way, lower ones know no higher ones, and module names in texts are names of modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnunet_kd

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nnunet_kd"

ORDER = (
    "system", "nnunet", "volumes", "models", "losses", "distillation", "training", "datasets", "inference", "export",
    "evaluation", "workflows", "cli",
)  # fmt: skip
"""From the bottom up: each may import what stands before it."""
BESIDE = {"_ext": set(), "trainers": {"system"}}
"""Subpackages outside of the order, with what they may import."""
FOREIGN = {
    "system": {"numpy", "torch", "SimpleITK", "nibabel", "nnunetv2", "monai", "scipy"},
    "losses": {"nnunetv2", "dynamic_network_architectures", "batchgenerators", "pydantic", "yaml"},
    "datasets": {"torch", "dynamic_network_architectures"},
}
"""Libraries that a subpackage must not import."""
UNKNOWN = {"inference": {"training"}, "export": {"training"}, "evaluation": {"training"}}
"""What stands before a subpackage and yet must not be known there, as its docstring says."""
SUBPACKAGES = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[:2] != "__")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, also within functions and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnunet_kd":
            yield node.lineno, f"nnunet_kd.{node.attr}"


def test_the_order_names_every_subpackage() -> None:
    assert sorted([*ORDER, *BESIDE]) == SUBPACKAGES
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == ["__init__", "_autoload", "errors"]


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_imports_go_one_way(name: str) -> None:
    allowed = {"errors", "__version__", name}
    if name in ORDER:
        allowed |= set(ORDER[: ORDER.index(name)]) - UNKNOWN.get(name, set())
    else:
        allowed |= BESIDE[name]
    wrong = []
    for path in sorted((PACKAGE / name).rglob("*.py")):
        for line, target in imported(path):
            parts = target.split(".")
            if parts[0] == "nnunet_kd" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
            if parts[0] in FOREIGN.get(name, ()):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {parts[0]}")
    assert not wrong, "\n".join(wrong)


def test_the_runtime_knows_neither_this_package_nor_its_libraries() -> None:
    foreign = {"nnunet_kd", "torch", "nnunetv2", "batchgenerators", "acvl_utils", "skimage", "tests"}
    files = sorted((ROOT / "runtime" / "src" / "nnunet_kd_runtime").rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in files
        for line, target in imported(path)
        if target.partition(".")[0] in foreign
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ORDER)
def test_a_subpackage_says_what_is_inside_and_what_it_must_not_know(name: str) -> None:
    first, blank, second, *_ = (ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text())) or "").split(
        "\n"
    )
    assert first.endswith(".")
    assert not blank
    assert second.startswith("Must") or name == "cli"


def test_the_root_imports_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import nnunet_kd; "
        "print(sorted(name for name in set(sys.modules) - before if name.partition('.')[0] != 'nnunet_kd'))"
    )
    finished = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_public_names_are_found_in_their_modules() -> None:
    for name in nnunet_kd.__all__:
        assert getattr(nnunet_kd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        nnunet_kd.Nothing  # noqa: B018
    source = (PACKAGE / "__init__.py").read_text()
    told = re.findall(r"^    from nnunet_kd\.([\w.]+) import (\w+) as \2$", source, flags=re.MULTILINE)
    assert {name: module for module, name in told} == nnunet_kd._PUBLIC


def _module_names() -> Iterator[tuple[str, str]]:
    """Place and dotted name of everything below ``nnunet_kd`` that code, tests and pages name."""
    for folder in ("nnunet_kd", "tests", "trainers", "benchmarks", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".sh") and "__pycache__" not in path.parts:
                for found in re.finditer(r"\bnnunet_kd((?:\.\w+)+)", path.read_text()):
                    yield str(path.relative_to(ROOT)), found[1]


def test_module_names_in_texts_are_names_of_modules() -> None:
    wrong = []
    for place, dotted in set(_module_names()):
        first, *rest = dotted[1:].split(".")
        folder = PACKAGE / first
        known = first in {"errors", "_autoload", "yaml", "Nothing", *nnunet_kd.__all__, *vars(nnunet_kd)}
        if folder.is_dir():
            init = (folder / "__init__.py").read_text() if (folder / "__init__.py").is_file() else ""
            known = (
                not rest
                or first == "trainers"
                or any(
                    [
                        (folder / f"{rest[0]}.py").is_file(),
                        (folder / rest[0]).is_dir(),
                        re.search(rf"\b{rest[0]}\b", init),
                    ]
                )
            )
        if not known:
            wrong.append(f"{place}: nnunet_kd{dotted}")
    assert not wrong, "\n".join(sorted(wrong))
