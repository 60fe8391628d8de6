"""The tables of the sweeps that choose."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import choice_tables
import pytest
from result_tables import KEPT
from sweep_trainings import add_rows, read_rows

from nnunet_kd.evaluation.tables import DASH, signed
from nnunet_kd.workflows.comparison import CASES_BY_SEED


def test_a_row_says_what_its_training_ended_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_tables, "REFERENCES", {"hippocampus-weights": "student"})
    (kept,) = choice_tables.kept_sweeps()
    folder = shutil.copytree(kept, tmp_path / kept.name)
    add_rows(folder / "clipped.csv", ("variant", "seed", "share_of_steps"), [("weight-5", "0", "0.2549")])
    columns = ("variant", "seed", "class", "brier", "ece", "undecided")
    measured = [("weight-5", "0", "overall", "0.01", "0.02", "0.3"), ("weight-5", "0", "Anterior", "1", "1", "1")]
    add_rows(folder / "calibration.csv", columns, measured)
    table = choice_tables.table(folder)
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    compared = {
        row["method"]: row
        for row in read_rows(kept / "weights" / "comparison.csv")
        if (row["metric"], row["class"]) == ("dice", "overall")
    }
    assert set(rows) == set(compared)
    found, wanted = rows["weight-5"], compared["weight-5"]
    assert found["Each training"] == f"{100 * float(wanted['mean']):.2f}"
    assert found["Difference to student"] == signed(100 * float(wanted["difference"]))
    seconds = next(row for row in read_rows(kept / "runs.csv") if row["variant"] == "weight-5")["median_epoch_seconds"]
    assert found["Median epoch (s)"] == seconds
    assert [found[name] for name in table.header[-4:]] == ["25%", "1", "2", "30"]
    assert rows["student"]["Clipped steps"] == rows["student"]["Difference to student"] == DASH


def test_a_table_replaces_the_one_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_tables, "REFERENCES", {"hippocampus-weights": "student"})
    (kept,) = choice_tables.kept_sweeps()
    page = f"# Title\n\n{choice_tables.MARKER}\n| old |\n\nWhat this says.\n"
    once = choice_tables.page_with(page, kept)
    assert "| old |" not in once
    assert once.endswith("\n\nWhat this says.\n")
    assert choice_tables.page_with(once, kept) == once


def test_a_sweep_has_no_table_before_its_reference_and_another_row_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_tables, "REFERENCES", {"sweep": "one"})
    values = tmp_path / "sweep" / CASES_BY_SEED
    values.parent.mkdir()
    assert choice_tables.kept_sweeps(tmp_path) == []
    for method, kept in (("two", []), ("three", []), ("one", [tmp_path / "sweep"])):
        add_rows(values, ("method", "seed"), [(method, "0")])
        assert choice_tables.kept_sweeps(tmp_path) == kept, method


def test_no_kept_training_names_a_place_of_the_machine_that_trained_it() -> None:
    paths = [path for ending in ("csv", "json", "md") for path in KEPT.rglob(f"*.{ending}")]
    assert paths
    named = [str(path) for path in paths if re.search(r"""["'= ]/(root|home|work|tmp|mnt|data)/""", path.read_text())]
    assert named == []
