"""Values kept by comparisons: read back as they were, put together, compared again without predictions."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nnunet_kd.cli.combine import combine
from nnunet_kd.errors import DataError, MissingRequirement, NnunetKdWarning, SettingsError
from nnunet_kd.evaluation.kept import choose_trainings, read_kept, write_kept
from nnunet_kd.evaluation.metrics import COUNTS, METRICS, MetricOptions
from nnunet_kd.evaluation.results import Evaluation

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(combine)
CASES, CLASSES = tuple(f"case_{index:02}" for index in range(12)), ("core", "rim")
OPTIONS = MetricOptions(nsd_tolerance=2.0, hd95_penalty=50.0)


def evaluation(random_seed: int, offset: float = 0.0, options: MetricOptions = OPTIONS) -> Evaluation:
    """Random values; one Dice is not defined."""
    random = np.random.default_rng(random_seed)
    names = [*(metric.name for metric in METRICS), *COUNTS]
    values = {name: random.uniform(0.1, 0.5, (len(CASES), len(CLASSES))) + offset for name in names}
    values["dice"][2, 1] = np.nan
    return Evaluation(Path("p"), Path("r"), CASES, CLASSES, values, options)


TEACHER = {None: evaluation(0, 0.4)}
MORNING = {"teacher": TEACHER, "student": {0: evaluation(1)}, "dcd": {0: evaluation(2, 0.1)}, "cwd": {0: evaluation(3)}}
EVENING = {"teacher": TEACHER, "student": {7: evaluation(4)}, "dcd": {7: evaluation(5, 0.1)}}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One sweep's values in two files, as if trained on two machines."""
    paths = [tmp_path / "morning.csv", tmp_path / "evening.csv"]
    for path, by_method in zip(paths, (MORNING, EVENING), strict=True):
        write_kept(by_method, path)
    return paths


def run(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_read_is_what_was_written(files: list[Path]) -> None:
    kept = read_kept(files)
    assert {name: list(by_seed) for name, by_seed in kept.items()} == {
        "teacher": [None], "student": [0, 7], "dcd": [0, 7], "cwd": [0],
    }  # fmt: skip
    for by_method in (MORNING, EVENING):
        for name, by_seed in by_method.items():
            for seed, written in by_seed.items():
                read = kept[name][seed]
                assert (read.cases, read.classes, read.options) == (CASES, CLASSES, OPTIONS)
                assert read.values.keys() == written.values.keys()
                for metric, values in written.values.items():
                    np.testing.assert_array_equal(read.values[metric], values)  # to the last digit


def test_rows_in_another_order_are_the_same_training(files: list[Path]) -> None:
    rows = rows_of(files[0])
    with files[0].open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["class"], row["case"]), reverse=True))
    (student,) = (read_kept(files[:1])["student"][0],)
    assert student.cases == CASES
    place = student.cases.index("case_05"), student.classes.index("rim")
    assert student.values["dice"][place] == pytest.approx(MORNING["student"][0].values["dice"][5, 1])


def test_methods_are_compared_with_the_seeds_that_all_have(files: list[Path]) -> None:
    kept = read_kept(files)
    chosen = choose_trainings(kept, "student")
    assert chosen.trainings.seeds == (0,)
    assert chosen.left_out == ("seed 7 left out; every method has 0.",)
    chosen = choose_trainings(kept, "student", ["dcd", "teacher", "student"])
    assert chosen.trainings.seeds == (0, 7)
    assert list(chosen.trainings.by_method) == ["dcd", "teacher", "student"]
    assert chosen.left_out == ()
    chosen = choose_trainings(kept, "student", ["student", "dcd"], [7])
    assert {name: list(by_seed) for name, by_seed in chosen.trainings.by_method.items()} == {"student": [7], "dcd": [7]}
    for arguments, message in (
        ((["student", "fgbvd"],), r"no method 'fgbvd'; they hold teacher, student, dcd, cwd"),
        ((None, [7]), r"seed 7 is not there of every method \(student: 0, 7; dcd: 0, 7; cwd: 0\)"),
    ):
        with pytest.raises(SettingsError, match=message):
            choose_trainings(kept, "student", *arguments)
    with pytest.raises(SettingsError, match=r"no seed is there of every method \(cwd: 0; late: 7\)"):
        choose_trainings({"cwd": kept["cwd"], "late": {7: kept["dcd"][7]}}, "cwd")


def test_files_that_contradict_each_other_are_refused(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    write_kept({"student": {0: evaluation(99)}}, other)
    with pytest.raises(DataError, match=r"morning\.csv and .*other\.csv hold different values of student, seed 0"):
        read_kept([*files, other])
    write_kept({"fitnet": {0: replace(evaluation(1), options=MetricOptions())}}, other)
    with pytest.raises(DataError, match="measured by different conventions"):
        read_kept([*files, other])
    assert list(read_kept([files[0], files[0]])) == list(MORNING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "lacks the columns method, seed, case"),
        (lambda lines: [line.replace("dice", "overlap") for line in lines], "lacks the columns dice"),
        (lambda lines: lines[:1], "holds no training"),
        (lambda lines: lines[:-1], "cwd, seed 0 has 23 rows for 12 cases of 2 classes"),
        (lambda lines: [*lines, lines[-1]], "cwd, seed 0 has 25 rows"),
        (lambda lines: [*lines[:-1], lines[-1][:40]], "line 97: not a row"),
        (lambda lines: [line.replace("cwd,0,", "cwd,first,") for line in lines], "line 74: not a row"),
        (lambda lines: [line.replace(",2.0,", ",wide,") for line in lines], "no number .*wide"),
    ],
)
def test_a_damaged_file_is_told(files: list[Path], change, message: str) -> None:
    path = files[0]
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(DataError, match=message):
        read_kept([path])


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_kept([tmp_path / "none.csv"])
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="cannot be read"):
        read_kept([tmp_path / "binary.csv"])


def test_combine_compares_without_predictions(files: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    told = run(*files, "--reference", "student", "--methods", "teacher, student, dcd", "-o", output)
    assert "Seeds: 0, 7 (averaged per case" in told
    assert "difference to student by training" in " ".join(told.split())
    (row,) = [
        row for row in rows_of(output / "comparison.csv")
        if (row["method"], row["metric"], row["class"]) == ("dcd", "dice", "rim")
    ]  # fmt: skip
    expected = np.nanmean([MORNING["dcd"][0].values["dice"][:, 1], EVENING["dcd"][7].values["dice"][:, 1]])
    assert float(row["mean"]) == pytest.approx(expected)
    assert float(row["gap_recovered"]) > 0
    report = (output / "report.html").read_text()
    assert "Another training" in report
    assert "NSD tolerance</dt><dd>2 mm" in report
    for heading in ("Cases", "Runs", "Accuracy and cost", "Training"):
        assert f"<h2>{heading}</h2>" not in report
    again = read_kept([output / "cases_by_seed.csv"])
    assert {name: list(by_seed) for name, by_seed in again.items()} == {
        "teacher": [None], "student": [0, 7], "dcd": [0, 7],
    }  # fmt: skip


def test_combine_never_replaces_what_it_is_made_of(files: list[Path], tmp_path: Path) -> None:
    kept = tmp_path / "comparison" / "cases_by_seed.csv"
    kept.parent.mkdir()
    kept.write_bytes(files[0].read_bytes())
    with pytest.raises(SettingsError, match=r"would overwrite the input .*cases_by_seed\.csv\. Give another folder"):
        run(kept, "--reference", "student", "-o", kept.parent)
    assert kept.read_bytes() == files[0].read_bytes()
    assert list(kept.parent.iterdir()) == [kept]


def test_combine_over_patients(files: list[Path], tmp_path: Path) -> None:
    chosen = (*files, "--reference", "student", "--methods", "student,dcd", "-o", tmp_path / "out")
    assert "over 12 cases" in run(*chosen)
    told = " ".join(run(*chosen, "--group-regex", "case_(.)").split())  # of case_00 to case_11
    assert "over 2 patients" in told
    assert "mean over patients" in told


def test_values_of_other_trainings_are_moved_aside(files: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):  # the second time, nothing would be lost
        run(*files, "--reference", "student", "--methods", "teacher,student,dcd", "-o", output)
        assert [path.name for path in output.glob("cases_by_seed*")] == ["cases_by_seed.csv"]
    before = (output / "cases_by_seed.csv").read_bytes()
    with pytest.warns(NnunetKdWarning, match=r"They are in cases_by_seed_1\.csv now"):
        run(*files, "--reference", "student", "--methods", "student,dcd", "--seeds", "0", "-o", output)
    assert (output / "cases_by_seed_1.csv").read_bytes() == before
    assert (output / "cases_by_seed.csv").read_bytes() != before


def test_combine_tells_what_is_left_out_and_refuses_early(files: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "warning: seed 7 left out; every method has 0." in run(*files, "--reference", "student", "-o", output)
    with pytest.raises(SettingsError, match="not among the methods: dcd, cwd"):
        run(*files, "--reference", "student", "--methods", "dcd,cwd", "-o", output)
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingRequirement, match="no folder that can be written to"):
        run(*files, "--reference", "student", "-o", tmp_path / "file")
