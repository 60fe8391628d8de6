"""The proof's statistics against slow, obvious forms; its rows against what the protocol names; what it keeps of a sweep."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import proof
import pytest
from draw_proof import curve, draw_minutes, draw_trainings
from proof_statistics import detectable_difference, family, not_inferior, recovered_share
from proof_tables import core_table, differences, write_tables
from proof_values import CORE, Proof, read_proof
from scipy import stats

from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.evaluation.kept import write_kept
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import CASE_COLUMNS, Evaluation
from nnunet_kd.workflows.comparison import CASES_BY_SEED
from nnunet_kd.workflows.sweep.description import describe_sweep

PROTOCOL = Path(__file__).resolve().parents[2] / "docs" / "explanation-proof.md"
PLAIN, INHERITED, BETTER = (84.1, 84.7, 85.1, 84.9), (86.9, 87.1, 86.8, 87.3), (87.2, 87.4, 87.1, 87.6)


def test_welch_and_holm_by_hand() -> None:
    values = {"plain": PLAIN, "inherited": INHERITED, "better": BETTER}
    first, second = family(values, [("inherited", "plain"), ("better", "inherited")], size=3)
    a, b = np.array(INHERITED), np.array(PLAIN)
    errors = a.var(ddof=1) / 4, b.var(ddof=1) / 4
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 3)
    t = (a.mean() - b.mean()) / math.sqrt(sum(errors))
    assert first.difference == pytest.approx(a.mean() - b.mean())
    assert first.p == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(errors))
    assert first.interval == pytest.approx((first.difference - half, first.difference + half))
    assert first.holm_p == pytest.approx(3 * first.p)  # the third test was not run
    assert second.holm_p == pytest.approx(max(first.holm_p, 2 * second.p))
    assert first.trainings == (4, 4)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    first, second = np.array([0.0, 1.0, 2.0, 0.5, 1.5, 1.0]), np.array([0.0, 0.2, -0.2, 0.1, -0.1, 0.3])
    wanted = detectable_difference(first, second)
    generator = np.random.default_rng(0)
    drawn = [
        generator.normal(mean, each.std(ddof=1), (20_000, len(each))) for mean, each in ((wanted, first), (0.0, second))
    ]
    found = stats.ttest_ind(*drawn, axis=1, equal_var=False).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)  # Welch's degrees of freedom are drawn, too
    assert math.isnan(detectable_difference([1, 1], [2, 2]))


def test_not_inferior_by_hand() -> None:
    p, low = not_inferior(INHERITED, 87.2, 0.5)
    values = np.array(INHERITED)
    error = values.std(ddof=1) / 2
    assert p == pytest.approx(stats.t.sf((values.mean() - 86.7) / error, 3))
    assert low == pytest.approx(values.mean() - 87.2 - stats.t.ppf(0.95, 3) * error)


def test_the_share_of_the_gap_by_hand() -> None:
    share, (low, high) = recovered_share(INHERITED, PLAIN, 88.0)
    assert share == pytest.approx((np.mean(INHERITED) - np.mean(PLAIN)) / (88 - np.mean(PLAIN)))
    assert low < share < high
    assert recovered_share((86.0, 86.0), (84.0, 84.0), 88.0) == (0.5, (0.5, 0.5))


@pytest.mark.parametrize(("name", "seeds", "iterations"), [("hippocampus", 6, 2000), ("acdc", 4, 3000)])
def test_core_rows_are_those_of_the_protocol(name: str, seeds: int, iterations: int) -> None:
    named = re.findall(r"^\| `([a-z-]+)` \|", PROTOCOL.read_text(), re.MULTILINE)
    assert tuple(named) == CORE
    description = describe_sweep(proof.HERE / f"proof-{name}.yaml", {})
    rows = description.rows()
    assert [row for row in CORE if row in rows] == list(rows)
    assert {"plain", "random-dcd"} <= set(rows)
    assert description.seeds == list(range(seeds))
    assert description.settings["epochs"] * description.settings["iterations_per_epoch"] == iterations
    assert rows["random-dcd"].recipe == "paper"


@pytest.mark.parametrize("name", ["hippocampus", "acdc"])
def test_rows_set_their_choices_themselves(name: str) -> None:
    for row, variant in describe_sweep(proof.HERE / f"proof-{name}.yaml", {}).rows().items():
        if not row.startswith("inherited"):
            continue
        assert set(variant.settings["inheritance"]) == set(InheritanceSettings.model_fields), row
        objectives = variant.settings.get("objectives", {})
        assert {"weight", "every", "projection_start"} <= set(
            objectives.get("dcd", {"weight": 0, "every": 1, "projection_start": 0})
        )
        assert {"alpha", "temperature", "maps"} <= set(
            objectives.get("soft", {"alpha": 0, "temperature": 1, "maps": ""})
        )


def test_other_rows_are_the_same_on_both_datasets() -> None:
    one, other = (describe_sweep(proof.HERE / f"proof-{name}.yaml", {}).rows() for name in ("hippocampus", "acdc"))
    for name, variant in one.items():
        if name != "plain-longer":  # whose iterations are the minutes of the best row
            assert other[name].model_dump() == variant.model_dump()


@pytest.mark.parametrize(
    ("variant", "needs"),
    [
        ({"method": "student"}, False),
        ({"method": "soft"}, True),
        ({"method": "kd", "settings": {"objectives": {"soft": {}, "dcd": {}}}}, True),
        ({"method": "dcd", "settings": {"objectives": {"dcd": {}}}}, False),
    ],
)
def test_soft_labels_are_made_where_a_row_reads_them(variant: dict, needs: bool) -> None:
    assert proof.needs_soft_labels({"variants": {"plain": {"method": "student"}, "row": variant}}) == needs


def test_trainings_of_two_commits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"status": "", "rev-parse": "a" * 40}
    monkeypatch.setattr(proof, "git", lambda command, *rest: told[command])
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    proof.note_origin(tmp_path, jobs=2)
    proof.note_origin(tmp_path, jobs=2)
    origin = json.loads((tmp_path / proof.ORIGIN).read_text())
    assert origin["commit"] == "a" * 40
    assert origin["workers"] == "0"
    told["rev-parse"] = "b" * 40
    with pytest.raises(SystemExit, match="come from one commit"):
        proof.note_origin(tmp_path, jobs=2)
    told["status"] = " M nnunet_kd/cli/main.py"
    with pytest.raises(SystemExit, match="not committed"):
        proof.note_origin(tmp_path, jobs=2)


def test_the_commit_is_this_repositorys() -> None:
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=proof.HERE, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip("not a git repository")
    assert proof.git("rev-parse", "HEAD") == told.stdout.strip()


def test_rows_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    proof.add_rows(path, ("variant", "seed", "commit"), [("plain", "0", "a"), ("plain", "1", "a")])
    proof.add_rows(path, ("variant", "seed", "commit"), [("plain", "1", "b"), ("inherited", "0", "b")])
    with path.open(newline="") as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [
            ("plain", "0", "a"),
            ("plain", "1", "b"),
            ("inherited", "0", "b"),
        ]


MINUTES = {
    "iterations": 3000,
    "rows": {
        "plain": {"once_seconds": 10, "seconds_per_100": [20, 18, 19], "plain_iterations": 3000},
        "inherited": {"once_seconds": 70, "seconds_per_100": [21, 20, 19], "plain_iterations": 3474},
    },
}


def evaluation(dice: float) -> Evaluation:
    """Two patients with two volumes each, one class; the second patient's volumes differ."""
    cases = ("patient001_a", "patient001_b", "patient002_a", "patient002_b")
    values = {name: np.full((4, 1), 1.0) for name in CASE_COLUMNS[2:]}
    values["dice"] = dice + np.array([[0.0], [0.0], [-0.1], [0.1]])
    return Evaluation(Path(), Path(), cases, ("heart",), values, MetricOptions(nsd_tolerance=1.5))


@pytest.fixture
def kept(tmp_path: Path) -> Proof:
    folder = tmp_path / "proof-acdc"
    folder.mkdir()
    trainings = {
        "teacher": {None: evaluation(0.84)},
        "plain": {seed: evaluation(dice / 100) for seed, dice in enumerate(PLAIN)},
        "inherited": {seed: evaluation(dice / 100) for seed, dice in enumerate(INHERITED)},
        "plain-longer": {seed: evaluation(dice / 100 - 0.01) for seed, dice in enumerate(INHERITED)},
    }
    write_kept(trainings, folder / CASES_BY_SEED)
    (tmp_path / "proof-acdc-curves").mkdir()
    write_kept({"plain-2x": {0: evaluation(0.86)}}, tmp_path / "proof-acdc-curves" / CASES_BY_SEED)
    (folder / "minutes.json").write_text(json.dumps(MINUTES))
    return read_proof("acdc", tmp_path, best="inherited")


def test_minutes_are_all_that_a_user_waits_for(kept: Proof) -> None:
    assert kept.minutes_of("inherited") == pytest.approx((70 + 30 * 20) / 60)
    assert kept.minutes_of("inherited", share=2, sharing=5) == pytest.approx((14 + 60 * 20) / 60)
    assert kept.minutes_of("plain-longer") == pytest.approx((10 + 34.74 * 19) / 60)
    assert kept.minutes_of("plain-longer") == pytest.approx(kept.minutes_of("inherited"), abs=0.01)
    assert math.isnan(kept.minutes_of("inherited-soft"))


def test_a_patients_volumes_count_once(kept: Proof) -> None:
    assert kept.by_case("teacher") == pytest.approx([84, 84])
    assert kept.values("plain") == pytest.approx(PLAIN)


def test_the_table_says_what_was_found_and_what_was_not_run(kept: Proof, tmp_path: Path) -> None:
    table = core_table(kept)
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["teacher", "plain", "inherited", "plain-longer"]
    found = differences(kept)["inherited", "plain"]
    assert rows["inherited"][6] == f"+{found.difference:.2f} to plain"
    assert rows["inherited"][-2:] == ("11.2", "10.2")
    assert "The best row against plain at its minutes: +1.00 Dice" in table.note
    assert "Not inferior to the teacher" in table.note
    for name in ("random-dcd", "inherited-soft-dcd", "inherited-2x"):
        assert name in table.note.split("Not run:")[1]
    assert "plain-2x" not in table.note
    write_tables(kept, tmp_path)
    with (tmp_path / "tests.csv").open(newline="") as file:
        assert [(row["row"], row["baseline"]) for row in csv.DictReader(file)] == [
            ("inherited", "plain"),
            ("inherited", "plain-longer"),
        ]


def test_pictures_show_every_row(kept: Proof, tmp_path: Path) -> None:
    assert list(curve(kept, "plain")) == pytest.approx([kept.minutes_of("plain"), kept.minutes_of("plain", 2)])
    for name, draw in (("minutes", draw_minutes), ("trainings", draw_trainings)):
        draw([kept], tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
