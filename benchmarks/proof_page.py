"""The proof's tables on docs/results.md, from what ``proof.py --keep`` and ``proof_minutes.py`` kept. A test compares both.

Command: ``python benchmarks/proof_page.py``. It writes each dataset's core rows below the line ``<!-- proof-DATASET -->``. All
other tables are in ``table.md`` of the dataset's folder (``proof_tables.py``).
"""

from __future__ import annotations

from pathlib import Path

from proof_tables import BASELINES, core_table, difference_text, differences
from proof_values import DATASETS, KEPT, LONGER, ROOT, Proof, read_proof
from result_tables import below

from nnunet_kd.evaluation.metrics import DICE, HD95, NSD
from nnunet_kd.evaluation.tables import DASH, Table, p_value
from nnunet_kd.system.files import write_atomically

PAGE = ROOT / "docs" / "results.md"
COPIED = ("Row", DICE.heading, HD95.heading, NSD.heading)
COPIED_BEHIND = ("Share of the gap", "Minutes")


def narrow_table(proof: Proof) -> Table:
    """The core's table with the columns that a page has room for; the best row also against plain at its minutes."""
    wide = core_table(proof)
    found = differences(proof)
    rows = []
    for cells in wide.rows:
        named = dict(zip(wide.header, cells, strict=True))
        row = named["Row"]
        baselines = [BASELINES.get(row, ""), *([LONGER] if row == proof.best else [])]
        own = [found[row, baseline] for baseline in baselines if (row, baseline) in found]
        told = "<br>".join(difference_text(one) for one in own) or DASH
        p = "<br>".join(p_value(one.holm_p) for one in own) or DASH
        rows.append((*(named[one] for one in COPIED), told, p, *(named[one] for one in COPIED_BEHIND)))
    header = (*COPIED, "Dice: difference, 95% interval", "p (Welch, Holm)", *COPIED_BEHIND)
    return Table(wide.title, header, tuple(rows))


def page_with(page: str, kept: Path = KEPT) -> str:
    """The page with every dataset's table whose marker stands there."""
    for name in DATASETS:
        if (marker := f"<!-- proof-{name} -->") in page:
            page = below(page, marker, narrow_table(read_proof(name, kept)))
    return page


def main() -> None:
    """Rewrite the page."""
    content = page_with(PAGE.read_text()).encode()
    write_atomically(PAGE, lambda file: file.write(content))


if __name__ == "__main__":
    main()
