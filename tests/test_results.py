"""The documentation's tables are those of the values kept with them."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
result_tables = runpy.run_path(str(ROOT / "benchmarks" / "result_tables.py"))
KEPT = ROOT / "benchmarks" / "results"
COMPARED = list(result_tables["COMPARISONS"])
choice_tables = runpy.run_path(str(ROOT / "benchmarks" / "choice_tables.py"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_comparison_is_described() -> None:
    assert sorted(str(path.parent.relative_to(KEPT)) for path in KEPT.glob("*/*/comparison.csv")) == sorted(COMPARED)


@pytest.mark.parametrize("name", COMPARED)
def test_page_shows_what_was_kept(name: str) -> None:
    page = (KEPT / "hippocampus" / "README.md").read_text()
    assert page == result_tables["page_with"](page, KEPT / name), "run python benchmarks/result_tables.py"


@pytest.mark.parametrize("folder", choice_tables["kept_sweeps"](), ids=lambda path: path.name)
def test_page_of_choices_shows_what_was_kept(folder: Path) -> None:
    page = (folder / "README.md").read_text()
    assert page == choice_tables["page_with"](page, folder), "run python benchmarks/choice_tables.py"


@pytest.mark.parametrize("name", COMPARED)
def test_comparisons_are_those_of_the_cases(name: str) -> None:
    """``comparison.csv`` belongs to ``cases_by_seed.csv``: in each case the mean over seeds and classes, then over cases."""
    options = dict(zip(*[iter(result_tables["COMPARISONS"][name])] * 2, strict=True))
    cases = rows_of(KEPT / name / ".." / "cases_by_seed.csv")
    seeds = [*options["--seeds"].split(","), ""]  # a teacher has none
    compared = rows_of(KEPT / name / "comparison.csv")
    means = {
        row["method"]: float(row["mean"]) for row in compared if (row["metric"], row["class"]) == ("dice", "overall")
    }
    assert len(means) > 1
    for method, mean in means.items():
        dice = [float(row["dice"]) for row in cases if row["method"] == method and row["seed"] in seeds]
        assert mean == pytest.approx(np.mean(dice), abs=1e-9)


@pytest.mark.parametrize("folder", sorted(path.parent for path in KEPT.glob("*/runs.csv")), ids=lambda path: path.name)
def test_every_training_names_its_command_and_hash(folder: Path) -> None:
    """No number without the run behind it."""
    runs = {(row["variant"], row["seed"]): row for row in rows_of(folder / "runs.csv")}
    for file, column in (("cases_by_seed.csv", "method"), ("epochs.csv", "variant")):
        trained = {(row[column], row["seed"]) for row in rows_of(folder / file) if row["seed"]}
        assert trained == set(runs)
    for run in runs.values():
        assert len(run["checkpoint_sha256"]) == 64
        assert run["command"].startswith("nnunet-kd train Dataset")
        assert f"seed={run['seed']} " in run["command"]


def test_a_training_kept_again_replaces_its_rows(tmp_path: Path) -> None:
    add_rows = runpy.run_path(str(ROOT / "benchmarks" / "sweep_trainings.py"))["add_rows"]
    path, columns = tmp_path / "epochs.csv", ("variant", "seed", "epoch")
    add_rows(path, columns, [("student", "0", "1"), ("student", "0", "2"), ("dcd", "0", "1")])
    add_rows(path, columns, [("student", "7", "1"), ("student", "0", "1")])
    kept = [tuple(row.values()) for row in rows_of(path)]
    assert kept == [("dcd", "0", "1"), ("student", "7", "1"), ("student", "0", "1")]
