"""docs/how-to-add-an-objective.md, followed literally in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "how-to-add-an-objective.md").read_text()


def blocks() -> tuple[str, str, str]:
    file, line, test = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    return file, line, test


@pytest.mark.slow
def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    for folder in ("nnunet_kd", "trainers", "plans", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file, line, test = blocks()
    (tmp_path / "nnunet_kd" / "distillation" / "objectives" / "attention.py").write_text(file)
    registry = tmp_path / "nnunet_kd" / "distillation" / "objectives" / "__init__.py"
    text = registry.read_text()
    end = text.index("}\n", text.index("_CLASSES = {"))
    registry.write_text(text[:end] + line + text[end:])
    (tmp_path / "tests" / "distillation" / "objectives" / "test_attention.py").write_text(test)

    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:cacheprovider",
            "tests/distillation/objectives/test_attention.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "4 passed" in finished.stdout


def test_the_page_is_linted_like_the_package(tmp_path: Path) -> None:
    file, _, _ = blocks()
    (tmp_path / "attention.py").write_text(file)
    arguments = ["check", "--config", str(ROOT / "pyproject.toml"), "--ignore", "INP", str(tmp_path)]
    finished = subprocess.run([sys.executable, "-m", "ruff", *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
