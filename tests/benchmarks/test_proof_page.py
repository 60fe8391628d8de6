"""docs/results.md and the tables beside the values are those of what was kept of the proof."""

from __future__ import annotations

from pathlib import Path

import proof_page
import pytest
from proof_tables import write_tables
from proof_values import CORE, DATASETS, KEPT, read_proof

from nnunet_kd.evaluation.tables import DASH

TABLES = [name for name in DATASETS if (KEPT / f"proof-{name}" / "table.md").is_file()]


def test_the_page_shows_what_was_kept() -> None:
    page = proof_page.PAGE.read_text()
    assert page == proof_page.page_with(page), "run python benchmarks/proof_page.py"
    for name in TABLES:
        assert f"<!-- proof-{name} -->" in page


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_what_was_kept(name: str, tmp_path: Path) -> None:
    write_tables(read_proof(name), tmp_path)
    for path in tmp_path.iterdir():
        assert (KEPT / f"proof-{name}" / path.name).read_bytes() == path.read_bytes(), "run benchmarks/proof_tables.py"


@pytest.mark.parametrize("name", TABLES)
def test_a_narrow_row_says_what_the_wide_one_says(name: str) -> None:
    proof = read_proof(name)
    wide = proof_page.core_table(proof)
    narrow = {row[0]: row for row in proof_page.narrow_table(proof).rows}
    assert list(narrow) == ["teacher", *(row for row in CORE if row in proof.rows)]
    for cells in wide.rows:
        named = dict(zip(wide.header, cells, strict=True))
        row = narrow[named["Row"]]
        assert row[1:4] == (named["Dice (%) ↑"], named["HD95 (mm) ↓"], named["NSD (%) ↑"])
        assert row[6:] == (named["Share of the gap"], named["Minutes"])
        if named["Dice: difference"] != DASH:
            difference, baseline = named["Dice: difference"].split(" to ")
            assert row[4].startswith(f"{difference} ({named['95% interval']}) to {baseline}")
            assert row[5].split("<br>")[0] == named["p (Welch, Holm)"]
