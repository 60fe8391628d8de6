"""``compare --sweep``: folds pooled, seeds averaged or apart, what is missing told."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nnunet_kd.cli.compare import compare
from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.evaluation.metrics import METRICS, MetricOptions
from nnunet_kd.evaluation.pooling import average_seeds, partly_defined, pool_folds
from nnunet_kd.evaluation.results import Evaluation
from nnunet_kd.evaluation.tables import DASH
from nnunet_kd.workflows.sweep.finished import find_finished
from nnunet_kd.workflows.sweep.record import RunRecord
from tests.evaluation.helpers import labels, write_dataset, write_image, write_model

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(compare)
WRONG = {("student", 0): 0.9, ("student", 1): 0.7, ("dcd", 0): 0.5, ("dcd", 1): 0.3}
SPLITS = [
    {"train": ["case_2", "case_3"], "val": ["case_0", "case_1"]},
    {"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]},
]


def evaluation(cases: tuple[str, ...], dice: list[list[float]], folder: str = "p") -> Evaluation:
    values = {metric.name: np.array(dice, dtype=float) for metric in METRICS}
    return Evaluation(Path(folder), Path("r"), cases, ("core", "rim"), values, MetricOptions())


def test_pooled_folds_are_sorted_with_their_folders() -> None:
    pooled = pool_folds([evaluation(("b", "d"), [[1, 2], [5, 6]], "x"), evaluation(("a",), [[3, 4]], "y")])
    assert pooled.cases == ("a", "b", "d")
    assert pooled.values["dice"].tolist() == [[3, 4], [1, 2], [5, 6]]
    assert [str(pooled.folder_of(case)) for case in pooled.cases] == ["y", "x", "x"]
    with pytest.raises(DataError, match="more than one"):
        pool_folds([evaluation(("a",), [[1, 2]]), evaluation(("a",), [[1, 2]])])


def test_seeds_are_averaged_where_they_are_defined() -> None:
    nan = float("nan")
    seeds = [evaluation(("a", "b"), [[1, nan], [nan, 0.5]]), evaluation(("a", "b"), [[0, 0.4], [nan, 0.7]])]
    np.testing.assert_allclose(average_seeds(seeds).values["dice"], [[0.5, 0.4], [nan, 0.6]])
    assert partly_defined({"dcd": seeds})[0] == (
        "dcd: Dice of 1 masks is defined in some seeds only, and is the mean over those."
    )
    assert partly_defined({"dcd": seeds[:1]}) == []
    with pytest.raises(DataError, match="different cases"):
        average_seeds([seeds[0], evaluation(("a", "c"), [[1, 1], [1, 1]])])


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two variants, two seeds, two folds, with predictions; the teacher's are perfect."""
    raw = write_dataset(tmp_path)
    preprocessed = tmp_path / "preprocessed" / raw.name
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    teacher = tmp_path / "teacher__nnUNetPlans__3d_fullres"
    for fold in ("0", "1"):
        write_fold(teacher, fold, 0.0, None)
    sweep = tmp_path / "sweeps" / "mine"
    for (variant, seed), wrong in WRONG.items():
        for fold in ("0", "1"):
            settings = f"teacher: {{path: {teacher}, fold: {fold}, sha256: abc{fold}}}\n" if variant == "dcd" else None
            model = sweep / variant / f"seed_{seed}" / raw.name / f"{variant}__nnUNetPlans__3d_fullres"
            write_fold(model, fold, wrong, settings)
            record = RunRecord(
                variant=variant, method=variant, fold=int(fold), seed=seed, command=[], device="cpu", software={},
                state="done", training_seconds=1800.0 * (1 + seed),
            )  # fmt: skip
            record.write(model / f"fold_{fold}")
            if variant == "dcd":  # the first epoch had the machine for itself, the last did not
                log = "".join(f"Epoch time: {seconds} s\n" for seconds in (20.0, 30.0, 900.0))
                (model / f"fold_{fold}" / "training_log_2026.txt").write_text(log)
    (sweep / "sweep.yaml").write_text("methods: [student, dcd]\n")
    return sweep


def write_fold(model: Path, fold: str, wrong: float, settings: str | None) -> None:
    write_model(model, fold, settings=settings)
    for case in SPLITS[int(fold)]["val"]:
        path = model / f"fold_{fold}" / "validation" / f"{case}.nii.gz"
        write_image(path, labels(int(case[-1]), wrong))
    (model / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")


def run_compare(sweep: Path, *arguments: str) -> tuple[str, list[dict[str, str]]]:
    output = sweep.parent / "out"
    command = ["--sweep", str(sweep), "--reference", "student", "-np", "1", "-o", str(output), *arguments]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with (output / "cases.csv").open() as file:
        return result.output, list(csv.DictReader(file))


def dice(rows: list[dict[str, str]], method: str) -> dict[tuple[str, str], float]:
    return {(row["case"], row["class"]): float(row["dice"]) for row in rows if row["method"] == method}


def test_variants_are_compared_over_all_folds_and_seeds(finished: Path) -> None:
    fold = next(finished.glob("dcd/seed_0/*/*/fold_0"))
    shutil.copytree(fold, fold.with_name("fold_0_old"))  # moved away, as a sweep says
    output, averaged = run_compare(finished)
    assert list(dict.fromkeys(row["method"] for row in averaged)) == ["teacher", "student", "dcd"]
    assert {row["case"] for row in averaged} == {f"case_{index}" for index in range(4)}
    assert set(dice(averaged, "teacher").values()) == {1.0}
    assert "warning" not in output
    assert "Seeds: 0, 1 (averaged per case" in output
    tables = (finished.parent / "out" / "tables.md").read_text()
    assert "| dcd | 4 | 0.75 | 0.5 to 1 | 3 | 30 |" in tables
    assert f"| student | 4 | 0.75 | 0.5 to 1 | 3 | {DASH} |" in tables
    report = (finished.parent / "out" / "report.html").read_text()
    assert "0, 1 (cases pooled)" in report
    assert "Another training" in report
    assert "Dice (%) ↑: difference to student by training" in tables
    assert "difference to student by training" in " ".join(output.split())
    with (finished.parent / "out" / "cases_by_seed.csv").open() as file:
        by_seed = list(csv.DictReader(file))
    assert {row["seed"] for row in by_seed if row["method"] == "teacher"} == {""}

    _, apart = run_compare(finished, "--seeds")
    names = ["teacher", "student", "student, seed 0", "student, seed 1", "dcd, seed 0", "dcd, seed 1"]
    assert list(dict.fromkeys(row["method"] for row in apart)) == names
    first, second, mean = dice(apart, "dcd, seed 0"), dice(apart, "dcd, seed 1"), dice(averaged, "dcd")
    assert first != second
    assert first == dice([row for row in by_seed if row["seed"] == "0"], "dcd")
    assert second == dice([row for row in by_seed if row["seed"] == "1"], "dcd")
    for place, value in mean.items():
        assert value == pytest.approx((first[place] + second[place]) / 2)

    _, one = run_compare(finished, "--fold", "1")
    assert {row["case"] for row in one} == {"case_2", "case_3"}
    assert dice(one, "dcd") == {place: value for place, value in mean.items() if place[0] in ("case_2", "case_3")}


def test_a_teacher_of_another_fold_is_told_and_not_shown(finished: Path) -> None:
    for file in finished.glob("dcd/seed_*/*/*/fold_*/distillation_settings.yaml"):
        file.write_text(file.read_text().replace("fold: 1", "fold: 0"))
    output, rows = run_compare(finished)
    assert "teacher" not in {row["method"] for row in rows}
    assert "fold 1: the teacher of dcd (fold 0) had seen 2 of the 2 cases" in output


def test_a_teacher_without_predictions_is_told_and_not_shown(finished: Path) -> None:
    teacher = finished.parents[1] / "teacher__nnUNetPlans__3d_fullres" / "fold_1" / "validation"
    for prediction in teacher.glob("*.nii.gz"):
        prediction.unlink()
    output, rows = run_compare(finished)
    assert {row["method"] for row in rows} == {"student", "dcd"}
    assert f"the teacher is not shown: {teacher} holds no predictions" in output.replace("\n", "")


def test_a_teacher_that_has_moved_is_told(finished: Path) -> None:
    teacher = finished.parents[1] / "teacher__nnUNetPlans__3d_fullres"
    teacher.rename(teacher.with_name("elsewhere"))
    output, _ = run_compare(finished)
    assert f"{teacher} is no folder (any more)" in output.replace("\n", "")


def test_what_is_not_finished_is_told(finished: Path) -> None:
    (missing,) = finished.glob("dcd/seed_1/*/*/fold_0/validation/summary.json")
    missing.unlink()
    sweep = find_finished(finished)
    assert sweep.seeds == (0,)
    assert sweep.left_out[0] == "not finished: dcd, seed 1, fold 0."
    assert "0 (one training per method" in sweep.facts(False)["Seeds"]
    assert find_finished(finished, "1").seeds == (0, 1)
    next(finished.glob("student/seed_0/*/*/fold_1/checkpoint_final.pth")).unlink()
    with pytest.raises(DataError, match=r"no seed .*student, seed 0, fold 1.*-f"):
        find_finished(finished)
    for summary in finished.glob("dcd/seed_*/*/*/fold_*/validation/summary.json"):
        summary.unlink()
    assert find_finished(finished).variants == ("student",)
    shutil.copytree(finished / "student" / "seed_0" / "Dataset999_Shells", finished / "student" / "seed_0" / "Dataset1")
    with pytest.raises(DataError, match="two trainings of one variant"):
        find_finished(finished)


def test_a_few_variants_may_have_more_seeds_than_the_others(finished: Path) -> None:
    shutil.copytree(finished / "dcd" / "seed_0", finished / "cwd" / "seed_0")
    assert find_finished(finished).seeds == (0,)
    assert find_finished(finished, only_variants=["dcd", "student"]).seeds == (0, 1)
    assert find_finished(finished, only_variants=["dcd", "student", "dcd"]).variants == ("dcd", "student")
    output, rows = run_compare(finished, "--variants", "student, dcd")
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["teacher", "student", "dcd"]
    assert "Seeds: 0, 1 (averaged per case" in output
    with pytest.raises(SettingsError, match=r"has no variant 'fgbvd'; it has cwd, dcd, student"):
        find_finished(finished, only_variants=["student", "fgbvd"])


def test_refused_before_anything_is_read(finished: Path) -> None:
    for arguments, message in (
        (["--reference", "student"], "not both"),
        (["--reference", "student", "a=b", "--sweep", str(finished)], "not both"),
        (["--reference", "student", "a=b", "--seeds"], "give them with --sweep"),
        (["--reference", "student", "--sweep", str(finished / "no")], "the folder does not exist"),
        (["--reference", "stud", "--sweep", str(finished)], "not among the methods: teacher, student, dcd"),
    ):
        kind = DataError if message == "the folder does not exist" else SettingsError
        with pytest.raises(kind, match=message):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
