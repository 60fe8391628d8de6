"""The proof's rows against what the protocol names."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import proof
import pytest
from proof_values import BEST, CORE, CURVES, INHERITED, KEPT, LONG, LONGER, OBJECTIVES, PLAIN, longer_iterations

from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant

PROTOCOL = Path(__file__).resolve().parents[2] / "docs" / "explanation-proof.md"
ROWS = {
    "hippocampus": CORE,
    "acdc": CORE,
    **{
        f"{name}-curves": [f"{row}-{share:g}x" for share in shares if share != 1 for row in (PLAIN, INHERITED)]
        for name, shares in CURVES.items()
    },
    "hippocampus-objectives": OBJECTIVES,
    "hippocampus-long": LONG,
}
NAMED = {
    "dcd": {"weight", "every", "projection_start"},
    "soft": {"alpha", "temperature", "maps"},
    "freekd": {"weight", "prompt_iterations"},
}
"""Settings of objectives that a row names itself."""
SEEDS = {"hippocampus": 6, "acdc": 4, "hippocampus-curves": 3, "acdc-curves": 3}
BUDGET = {"hippocampus": 2000, "acdc": 3000}


def sweeps() -> list[tuple[str, SweepDescription]]:
    return [(name, found) for name in proof.QUEUE if (found := proof.described(name)) is not None]


def test_rows_are_those_of_the_protocol() -> None:
    assert set(ROWS) == set(proof.QUEUE)
    named = re.findall(r"^\| `([a-z-]+)` \|", PROTOCOL.read_text(), re.MULTILINE)
    assert tuple(named) == CORE
    for name, description in sweeps():
        rows = list(description.rows())
        assert rows == [row for row in ROWS[name] if row in rows], name
        assert description.seeds == list(range(SEEDS.get(name, 1))), name
        assert description.folds == [0], name


def test_iterations_are_those_of_the_protocol() -> None:
    for name, description in sweeps():
        for row, variant in description.rows().items():
            settings = {**description.settings, **variant.settings}
            iterations = settings["epochs"] * settings["iterations_per_epoch"]
            share = re.search(r"-([0-9.]+)x$", row)
            if row in LONG:
                assert iterations == 20_000
            elif row != LONGER:
                assert iterations == BUDGET[name.split("-")[0]] * (float(share[1]) if share else 1), row
    assert {row.recipe for _, one in sweeps() for name, row in one.rows().items() if name == "random-dcd"} == {"paper"}


def test_plain_longer_has_as_many_iterations_as_fit_into_the_best_rows_minutes() -> None:
    for name in BUDGET:
        path = KEPT / f"proof-{name}" / "minutes.json"
        if BEST is not None and path.is_file():
            measured = json.loads(path.read_text())["rows"][BEST]["plain_iterations"]
            assert longer_iterations(proof.HERE / f"proof-{name}.yaml") == 100 * math.ceil(measured / 100)


def test_rows_set_their_choices_themselves() -> None:
    chosen = []
    for _, description in sweeps():
        for row, variant in description.rows().items():
            if row.startswith("plain") or row == "random-dcd":
                continue
            assert variant.settings["start"] == "teacher", (
                row
            )  # without it a student might start at random, with a warning
            assert set(variant.settings["inheritance"]) == set(InheritanceSettings.model_fields), row
            chosen.append(variant.settings["inheritance"])
            objectives = variant.settings.get("objectives", {})
            named = [variant.method] if variant.method not in ("inherited", "kd") else list(objectives)
            assert set(objectives) == set(named), row  # a recipe's own objectives might change
            for objective in named:
                assert NAMED.get(objective, {"weight"}) <= set(objectives[objective]), (row, objective)
    assert all(one == chosen[0] for one in chosen)


def test_rows_are_the_same_on_both_datasets_and_plain_longer_follows_each_ones_minutes() -> None:
    described = []
    for name in BUDGET:
        description = proof.described(name)
        assert description is not None
        rows = {row: variant.model_dump() for row, variant in description.rows().items()}
        longer = rows.pop(LONGER, None)
        assert (longer is not None) == (KEPT / f"proof-{name}" / "minutes.json").is_file(), name
        if longer is not None:
            assert longer | {"settings": {}} == rows[PLAIN]  # its length is another test's
            assert set(longer["settings"]) == {"epochs"}
        described.append(rows)
    assert described[0] == described[1]


def test_soft_labels_are_made_where_a_row_reads_them() -> None:
    def row(method: str, **objectives: dict) -> Variant:
        return Variant(method=method, settings={"objectives": objectives})

    maps = {"maps": "teacher_fold_0_mirrored"}
    assert proof.soft_label_choices([row("student"), row("dcd", dcd={})]) == set()
    assert proof.soft_label_choices([row("soft", soft=maps), row("student")]) == {True}
    assert proof.soft_label_choices([row("kd", soft={"maps": "teacher_fold_0_not_mirrored"}, dcd={})]) == {False}
    with pytest.raises(SystemExit, match="name the soft labels"):
        proof.soft_label_choices([row("soft")])


def goes_on_as(row: Variant, core: Variant) -> bool:
    """Whether a longer training has the method and settings of the core's row."""
    longer = {name: value for name, value in row.settings.items() if name != "epochs"}
    return (row.method, row.recipe, longer) == (core.method, core.recipe, dict(core.settings))


def test_the_long_best_row_is_the_cores_best() -> None:
    soft, dcd = ({"objectives": {name: {}}} for name in ("soft", "dcd"))
    one = Variant(method="kd", settings=soft)
    assert goes_on_as(Variant(method="kd", settings={**soft, "epochs": 200}), one)
    assert not goes_on_as(Variant(method="kd", settings=dcd), one)
    assert not goes_on_as(Variant(method="soft", settings=soft), one)
    core, long = proof.described("hippocampus"), proof.described("hippocampus-long")
    assert core is not None
    if BEST is not None:
        assert BEST in core.rows()
    if BEST is not None and long is not None:
        assert goes_on_as(long.rows()["best-20000"], core.rows()[BEST])
