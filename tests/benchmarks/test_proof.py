"""The proof's statistics against slow, obvious forms; its tables and pictures of made-up values."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import proof_statistics
import pytest
import yaml
from draw_proof import draw_minutes, draw_trainings
from proof_statistics import detectable_difference, family, not_inferior, recovered_share
from proof_tables import core_table, curves_table, differences, targets, write_tables
from proof_values import Proof, read_proof
from scipy import stats

from nnunet_kd.evaluation.kept import write_kept
from nnunet_kd.evaluation.metrics import MetricOptions
from nnunet_kd.evaluation.results import CASE_COLUMNS, Evaluation
from nnunet_kd.evaluation.tables import DASH
from nnunet_kd.workflows.comparison import CASES_BY_SEED

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
    strict = detectable_difference(first, second, 0.01)
    assert strict > wanted
    (only,) = family({"a": list(first), "b": list(second)}, [("a", "b")], size=5)
    assert only.detectable == pytest.approx(strict)


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


@pytest.mark.parametrize(("trainings", "least"), [(4, 0.85), (6, 0.86)])
def test_how_often_the_bootstrap_holds_the_true_share(
    trainings: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_statistics, "RESAMPLES", 999)
    generator, found = np.random.default_rng(0), []
    for _ in range(300):
        plain, row = generator.normal(85, 0.35, trainings), generator.normal(87.3, 0.25, trainings)
        _, (low, high) = recovered_share(row, plain, 88.0)
        found.append(low <= 2.3 / 3 <= high)
    assert least - 0.03 < np.mean(found) < 0.95


def test_the_bootstrap_varies_as_means_of_trainings_do() -> None:
    values = np.array([83.0, 84.0, 85.0, 86.0])
    _, (low, high) = recovered_share(values, (80.0, 80.0), 90.0)
    error = values.std(ddof=1) / 2  # of the mean
    assert (high - low) / 2 * 10 == pytest.approx(1.96 * error, rel=0.1)


MINUTES = {
    **{"code": "a", "processor": "one", "threads": "2", "torch": "2"},
    "iterations": 3000,
    "rows": {
        "plain": {"once_seconds": 10, "shareable_seconds": 0, "seconds_per_100": [20, 18, 19]},
        "inherited": {
            **{"once_seconds": 70, "shareable_seconds": 50, "seconds_per_100": [21, 20, 19]},
            "plain_iterations": 3474,
        },
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
    described = {"variants": {"plain-longer": {"settings": {"epochs": 35}}}, "settings": {"iterations_per_epoch": 100}}
    (tmp_path / "proof-acdc.yaml").write_text(yaml.safe_dump(described))
    return read_proof("acdc", tmp_path, best="inherited", descriptions=tmp_path)


def test_minutes_are_all_that_a_user_waits_for(kept: Proof) -> None:
    assert kept.minutes_of("inherited") == pytest.approx((70 + 30 * 20) / 60)
    assert kept.minutes_of("inherited", share=2, sharing=5) == pytest.approx((20 + 10 + 60 * 20) / 60)
    assert kept.minutes_of("plain-longer") == pytest.approx((10 + 35 * 19) / 60)
    assert math.isnan(kept.minutes_of("inherited-soft"))


def test_plain_at_other_minutes(kept: Proof) -> None:
    points = {10 + 30 * 19: np.mean(PLAIN), 10 + 35 * 19: np.mean(INHERITED) - 1, 10 + 60 * 19: 86.0}
    assert list(kept.curve("plain")) == pytest.approx([seconds / 60 for seconds in points])
    between = np.interp(70 + 30 * 20, list(points), list(points.values()))
    assert kept.plain_at(kept.minutes_of("inherited")) == pytest.approx(between)
    shortest, longest = min(kept.curve("plain")), max(kept.curve("plain"))
    for minutes in (1, 0.89 * shortest, 1.11 * longest, 100):
        assert math.isnan(kept.plain_at(minutes))
    # minutes that differ by less than a tenth are the same
    assert kept.plain_at(0.91 * shortest) == pytest.approx(np.mean(PLAIN))
    assert kept.plain_at(1.09 * longest) == pytest.approx(86.0)


def test_minutes_of_other_code_are_refused(kept: Proof, tmp_path: Path) -> None:
    (tmp_path / "proof-acdc-curves" / "minutes.json").write_text(json.dumps({**MINUTES, "code": "b"}))
    with pytest.raises(ValueError, match="different code"):
        read_proof("acdc", tmp_path)
    (tmp_path / "proof-acdc-curves" / "minutes.json").write_text(json.dumps({**MINUTES, "processor": "another"}))
    with pytest.raises(ValueError, match="different machines"):
        read_proof("acdc", tmp_path)


def test_a_patients_volumes_count_once(kept: Proof) -> None:
    assert kept.by_case("teacher") == pytest.approx([84, 84])
    assert kept.values("plain") == pytest.approx(PLAIN)


def test_the_table_says_what_was_found_and_what_was_not_run(kept: Proof, tmp_path: Path) -> None:
    table = core_table(kept)
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["teacher", "plain", "inherited", "plain-longer"]
    found = differences(kept)["inherited", "plain"]
    assert rows["inherited"][6] == f"+{found.difference:.2f} to plain"
    assert rows["inherited"][-3:] == ("11.2", "10.5", f"{kept.plain_at(670 / 60):.2f}")
    assert "+" not in rows["teacher"][5]  # an interval of values, not of differences
    assert rows["inherited"][9] == f"{found.detectable:.2f}"
    assert "HD95 leaves out" not in table.note
    assert "nominal" in table.note
    assert "The best row against plain at its minutes: +1.00 Dice" in table.note
    assert "Not inferior to the teacher" in table.note
    for name in ("random-dcd", "inherited-soft-dcd", "inherited-2x"):
        assert name in table.note.split("Not run:")[1]
    assert "plain-2x (1 of 3)" in table.note
    assert "plain (" not in table.note
    assert "no plain student was trained as long" not in table.note
    assert "not trained for its minutes: +1.00" in core_table(replace(kept, longer=3400)).note
    fewer = replace(kept, rows={**kept.rows, "inherited": dict(list(kept.rows["inherited"].items())[:3])})
    assert {row[0]: row[10] for row in core_table(fewer).rows}["inherited"] == DASH
    assert {row[0]: row[10] for row in table.rows}["inherited"] != DASH
    write_tables(kept, tmp_path)
    with (tmp_path / "tests.csv").open(newline="") as file:
        assert [(row["row"], row["baseline"]) for row in csv.DictReader(file)] == [
            ("inherited", "plain"),
            ("inherited", "plain-longer"),
        ]


def test_other_lengths_and_targets_are_told(kept: Proof, tmp_path: Path) -> None:
    curves = curves_table(kept)
    assert curves is not None
    assert [row[:3] for row in curves.rows] == [
        ("plain", "1", "4"),
        ("plain", "2", "1"),
        ("inherited", "1", "4"),
    ]
    assert curves_table(replace(kept, rows={"plain": kept.rows["plain"]})) is None
    (told,) = targets(kept)
    share = (np.mean(INHERITED) - np.mean(PLAIN)) / (84 - np.mean(PLAIN))
    assert told.startswith(f"inherited recovers {100 * share:.0f}% of the gap")
    assert "within 1 Dice" in told
    longer = replace(kept, rows={**kept.rows, "plain-4x": kept.rows["plain-2x"]}, best=None)
    (told,) = targets(longer)
    assert "plain at 4x 86.00 after" in told
    assert told.endswith("1.03 Dice more in 29% of the minutes (target: at least plain's Dice in a third; reached).")
    better = replace(longer, rows={**longer.rows, "plain-4x": {0: evaluation(0.88)}})
    assert targets(better)[0].endswith("missed).")


def test_structures_that_were_missed_are_counted(kept: Proof) -> None:
    one = evaluation(0.84)
    one.values["dice"][1], one.values["hd95"][1] = 0.0, np.nan
    missing = replace(kept, rows={**kept.rows, "plain": {0: one, 1: evaluation(0.8)}})
    assert "a training on average: plain 0.5" in core_table(missing).note


def test_pictures_show_every_row(kept: Proof, tmp_path: Path) -> None:
    for name, draw in (("minutes", draw_minutes), ("trainings", draw_trainings)):
        figure = draw([kept], tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        drawn = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "o")
        assert drawn == (13 if name == "minutes" else 12)  # trainings: three rows of four, and one of twice the length
