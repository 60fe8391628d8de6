"""The documentation's tables are those of the values kept with them."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT = sorted((ROOT / "benchmarks" / "results").iterdir())
result_tables = runpy.run_path(str(ROOT / "benchmarks" / "result_tables.py"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_page_shows_what_was_kept(folder: Path) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert page == result_tables["page_with"](page, folder), "run python benchmarks/result_tables.py"


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_means_are_those_of_the_cases(folder: Path) -> None:
    """``comparison.csv`` belongs to ``cases.csv``."""
    with (folder / "cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    with (folder / "comparison.csv").open() as file:
        means = {
            row["method"]: float(row["mean"])
            for row in csv.DictReader(file)
            if row["metric"] == "dice" and row["class"] == "overall"
        }
    for method, mean in means.items():
        assert mean == pytest.approx(
            np.mean([float(row["dice"]) for row in cases if row["method"] == method]), abs=1e-9
        )
