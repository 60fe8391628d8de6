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
import yaml
from proof_statistics import detectable_difference, family, not_inferior, recovered_share
from scipy import stats

PROTOCOL = Path(__file__).resolve().parents[2] / "docs" / "explanation-proof.md"
PLAIN, INHERITED, BETTER = (84.1, 84.7, 85.1, 84.9), (86.9, 87.1, 86.8, 87.3), (87.2, 87.4, 87.1, 87.6)


def test_welch_and_holm_by_hand() -> None:
    values = {"plain": PLAIN, "inherited": INHERITED, "better": BETTER}
    first, second = family(values, [("inherited", "plain"), ("better", "inherited")])
    a, b = np.array(INHERITED), np.array(PLAIN)
    errors = a.var(ddof=1) / 4, b.var(ddof=1) / 4
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 3)
    t = (a.mean() - b.mean()) / math.sqrt(sum(errors))
    assert first.difference == pytest.approx(a.mean() - b.mean())
    assert first.p == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(errors))
    assert first.interval == pytest.approx((first.difference - half, first.difference + half))
    assert first.holm_p == pytest.approx(min(1, 2 * first.p))
    assert second.holm_p == pytest.approx(max(first.holm_p, second.p))
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


def test_core_rows_are_those_of_the_protocol() -> None:
    named = set(re.findall(r"^\| `([a-z-]+)` \|", PROTOCOL.read_text(), re.MULTILINE))
    for name, seeds in (("hippocampus", 6), ("acdc", 4)):
        described = yaml.safe_load((proof.HERE / f"proof-{name}.yaml").read_text())
        assert set(described["variants"]) <= named
        assert described["seeds"] == list(range(seeds))
    assert list(proof.QUEUE)[:2] == ["hippocampus", "acdc"]


def test_other_rows_are_the_same_on_both_datasets() -> None:
    one, other = (yaml.safe_load((proof.HERE / f"proof-{name}.yaml").read_text()) for name in ("hippocampus", "acdc"))
    for name, variant in one["variants"].items():
        if name != "plain-longer":  # whose iterations are the minutes of the best row
            assert other["variants"][name] == variant


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
