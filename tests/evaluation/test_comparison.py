"""Comparison, tables and the page that is made of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import subprocess

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import stats

from nnunet_kd.errors import DataError, SettingsError
from nnunet_kd.evaluation.case_figures import CaseImages, choose_cases, draw_panels, informative_slice, zoom_box
from nnunet_kd.evaluation.comparison import compare
from nnunet_kd.evaluation.costs.profiling import DeviceProfile, Latency, Profile
from nnunet_kd.evaluation.folders import evaluate_folder
from nnunet_kd.evaluation.labels import LabelSet
from nnunet_kd.evaluation.metrics import DICE, HD95, METRICS, MetricOptions
from nnunet_kd.evaluation.report import Pictures, ReportInput, write_report
from nnunet_kd.evaluation.results import Evaluation, paired_values
from nnunet_kd.evaluation.runs import Method, Run
from nnunet_kd.evaluation.tables import (
    MINUS,
    Table,
    class_tables,
    difference_cells,
    difference_tables,
    joined,
    overall_table,
)
from tests.evaluation.helpers import write_dataset


def evaluation(shift, n=20, classes=("NETC", "ET"), seed=0):
    """Numbers around a mean, the same cases for every shift."""
    random = np.random.default_rng(seed)
    values = {metric.name: random.normal(0.6, 0.1, (n, len(classes))) for metric in METRICS}
    noise = np.random.default_rng(int(1000 * shift)).normal(0, 0.02, (n, len(classes)))
    values = {name: array + shift + noise for name, array in values.items()}
    for count in ("reference_volume", "prediction_volume"):
        values[count] = np.ones((n, len(classes)))
    cases = tuple(f"case_{index:02d}" for index in range(n))
    return Evaluation(".", ".", cases, classes, values, MetricOptions())


@pytest.fixture
def comparison():
    methods = {"teacher": evaluation(0.2), "student": evaluation(0.0), "cwd": evaluation(0.05), "dcd": evaluation(0.1)}
    return compare(methods, "student", "teacher")


def test_rows_are_the_statistics_of_their_values(comparison):
    row = comparison.row("dcd", DICE, "ET")
    method, student, teacher = (
        comparison.evaluations[name].values["dice"][:, 1] for name in ("dcd", "student", "teacher")
    )
    assert row.paired.t_p == pytest.approx(stats.ttest_rel(method, student).pvalue)
    assert row.gap == pytest.approx((method - student).mean() / (teacher - student).mean())
    assert row.summary.standard_error == pytest.approx(stats.sem(method))
    others = [comparison.row(name, DICE, "ET") for name in ("teacher", "cwd", "dcd")]
    smallest = min(others, key=lambda other: other.paired.t_p)
    assert smallest.t_holm == pytest.approx(3 * smallest.paired.t_p)
    assert comparison.row("student", DICE).paired is None
    assert np.isnan(comparison.row("teacher", DICE).gap)


def test_a_case_counts_once_overall(comparison):
    values = comparison.evaluations["dcd"].values["dice"].copy()
    values[0, 0] = values[1] = np.nan
    changed = Evaluation(".", ".", comparison.cases, comparison.classes, {"dice": values}, MetricOptions())
    per_case = changed.per_case("dice")
    assert per_case[0] == values[0, 1]
    assert np.isnan(per_case[1])
    assert per_case[2:] == pytest.approx(values[2:].mean(axis=1))
    assert changed.summary("dice").left_out == 1


def test_means_and_tests_are_over_patients(comparison):
    patients = [case[:-1] for case in comparison.cases]  # two of ten cases
    grouped = compare(comparison.evaluations, "student", "teacher", patients)
    assert (grouped.unit, grouped.units, grouped.cases) == ("patient", 2, comparison.cases)
    row = grouped.row("dcd", DICE, "ET")
    values = [grouped.evaluations[name].values["dice"][:, 1].reshape(2, 10).mean(1) for name in ("dcd", "student")]
    assert row.summary.mean == pytest.approx(values[0].mean())
    assert row.summary.cases == row.paired.cases == 2
    assert row.paired.t_p == pytest.approx(stats.ttest_rel(*values).pvalue)
    assert "over 2 patients; a case's value is the mean over its classes, a patient's" in overall_table(grouped).note
    assert "paired by patient" in difference_tables(grouped)[0].note
    assert "over 20 cases; a case's value is the mean over its classes." in overall_table(comparison).note


def test_a_class_without_a_value_in_one_method_counts_for_neither():
    student, method = evaluation(0.0), evaluation(0.1)
    student.values["hd95"][3, 1] = np.nan  # missed altogether, so there is no distance
    student.values["hd95"][4] = np.nan
    method.values["hd95"][3, 1] = 50.0
    own, base = paired_values([method, student], "hd95")
    assert (own[3], base[3]) == (method.values["hd95"][3, 0], student.values["hd95"][3, 0])
    assert np.isnan([own[4], base[4]]).all()
    found = compare({"student": student, "dcd": method}, "student").row("dcd", HD95).paired
    assert found.cases == 19
    assert found.difference == pytest.approx(np.nanmean(own - base))
    assert found.t_p == pytest.approx(stats.ttest_rel(own, base, nan_policy="omit").pvalue)


def test_wrong_roles_and_unlike_evaluations_are_refused(comparison):
    methods = comparison.evaluations
    with pytest.raises(SettingsError, match="--reference 'studnet' is not among the methods: teacher, student"):
        compare(methods, "studnet")
    with pytest.raises(SettingsError, match="at least two"):
        compare({"student": methods["student"]}, "student")
    with pytest.raises(SettingsError, match="cannot be reference and teacher"):
        compare(methods, "student", "student")
    with pytest.raises(DataError, match=r"other cases or classes \(case_19\)"):
        compare({"student": methods["student"], "short": evaluation(0.1, n=19)}, "student")


def test_tables_have_the_papers_form(comparison):
    table = overall_table(comparison)
    assert table.header[:4] == ("Method", "Dice (%) ↑", "HD95 (mm) ↓", "NSD (%) ↑")
    summary = comparison.row("dcd", DICE).summary
    assert table.rows[3][1] == f"{100 * summary.mean:.2f} ± {100 * summary.standard_error:.2f}"
    assert table.rows[3][2] == f"{comparison.row('dcd', HD95).summary.mean:.2f} ± " + table.rows[3][2].split("± ")[1]
    per_class = class_tables(comparison)[0]
    assert per_class.header == ("Method", "NETC", "ET")
    differences = difference_tables(comparison)[0]
    assert [row[:2] for row in differences.rows][:3] == [("teacher", "overall"), ("teacher", "NETC"), ("teacher", "ET")]
    assert not any(row[0] == "student" for row in differences.rows)
    gap = comparison.row("dcd", DICE).gap
    assert differences.rows[6][-1] == f"{100 * gap:.0f}%"
    nothing = dataclasses.replace(comparison.row("dcd", DICE), gap=-0.0)
    assert difference_cells(nothing)[-1] == "0%"


def test_without_a_teacher_there_is_no_gap(comparison):
    table = difference_tables(compare(comparison.evaluations, "student"))[0]
    assert table.header[-1] == "Holm"
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_names_are_escaped_in_every_form():
    table = Table("100% of A_B", ("Method", "x < 1 ↑"), (("a|b_1 & c", f"{MINUS}1.00 ± 0.10"),))
    assert "a\\|b_1 & c" in table.markdown()
    assert list(csv.reader(io.StringIO(table.csv())))[1] == ["a|b_1 & c", f"{MINUS}1.00 ± 0.10"]
    latex = table.latex()
    assert r"a|b\_1 \& c & $-$1.00 $\pm$ 0.10 \\" in latex
    assert r"100\% of A\_B" in latex
    assert r"x $<$ 1 $\uparrow$" in latex


def test_latex_compiles(comparison, tmp_path):
    text = joined([overall_table(comparison), *difference_tables(comparison)], "latex")
    assert text.isascii()
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 5
    for block in re.findall(r"\\begin\{tabular\}\{(l?r*)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns, body = block
        lines = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}
    preamble = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
    (tmp_path / "t.tex").write_text(preamble + text + "\\end{document}")
    try:
        subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("pdflatex is not installed; columns and characters were checked")


def test_csv_holds_every_row(comparison, tmp_path):
    comparison.write_csv(tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert len(rows) == 4 * len(METRICS) * 3
    (row,) = [r for r in rows if (r["method"], r["metric"], r["class"]) == ("dcd", "dice", "overall")]
    expected = comparison.row("dcd", DICE)
    assert float(row["difference"]) == expected.paired.difference
    assert float(row["wilcoxon_p_holm"]) == expected.wilcoxon_holm
    assert float(row["gap_recovered"]) == expected.gap
    (own,) = [r for r in rows if (r["method"], r["metric"], r["class"]) == ("student", "dice", "overall")]
    assert own["difference"] == own["t_p"] == ""


def test_worst_median_and_best_cases():
    method = np.array([0.5, 0.9, np.nan, 0.7, 0.6])
    reference = np.array([0.6, 0.6, 0.1, 0.7, 0.5])
    assert choose_cases(method, reference, 1) == {"worst": 0, "median": 3, "best": 1}
    assert choose_cases(method, reference, -1) == {"worst": 1, "median": 4, "best": 0}
    assert choose_cases(method[:1], reference[:1], 1) == {"worst": 0}
    assert choose_cases(method[2:3], reference[2:3], 1) == {}


def images(error_at, flipped=()):
    reference = np.zeros((6, 20, 30), dtype=np.float32)
    reference[:, 5:15, 5:15] = 1
    wrong = reference.copy()
    wrong[error_at, 12:16, 20:24] = 1
    return CaseImages(
        np.random.default_rng(0).random(reference.shape), reference, {"a": reference, "b": wrong}, (3, 1, 1), flipped
    )


def test_an_image_of_one_slice_is_shown_in_its_plane_however_thin_it_is():
    flat = np.zeros((1, 20, 30), dtype=np.float32)
    case = CaseImages(flat, flat, {"a": flat}, (1, 2, 2), ())
    assert draw_panels(case, {"core": 1})[1:] == (0, 0)


def test_the_slice_with_the_error_is_shown_and_the_box_holds_it():
    case = images(error_at=4)
    assert informative_slice(case, 0) == 4
    rows, columns = zoom_box(case, 0, 4)
    assert rows.start <= 12
    assert rows.stop >= 16
    assert columns.start <= 20
    assert columns.stop >= 24
    assert rows.stop - rows.start < 14
    assert rows.start >= 0
    assert columns.stop <= 30
    panels, axis, position = draw_panels(case, {"core": 1, "empty": 2})
    assert [panel.title for panel in panels] == ["image", "reference", "a", "b"]
    assert (axis, position) == (0, 4)
    assert len({panel.png for panel in panels}) == 4
    assert draw_panels(images(error_at=4, flipped=(0,)), {"core": 1})[2] == 1  # as the file counts


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report over generated files, and its text."""
    tmp_path = tmp_path_factory.mktemp("report")
    raw = write_dataset(tmp_path, methods={"teacher": 0.2, "student": 0.9, "<b>ours</b>": 0.5})
    names = ["teacher", "student", "<b>ours</b>"]
    evaluations = {n: evaluate_folder(tmp_path / n, raw / "labelsTr", raw / "dataset.json") for n in names}
    result = compare(evaluations, "student", "teacher")
    teacher = {"path": "/models/t", "sha256": "c0ffee" * 8, "fold": 1}
    run = Run(tmp_path, "0", "Dataset999_Shells", None, None, 123456, {"teacher": teacher}, {"dcd loss": [3.0, 2.0]})
    methods = [Method(n, tmp_path / n, run if n == "<b>ours</b>" else None) for n in names]

    def image_of(case):
        return raw / "imagesTr" / f"{case}_0000.nii.gz"

    device = DeviceProfile("a processor", 10**6, {"patch": Latency(0.5, 0.4, 0.6, 5)})
    profile = Profile("student", "s", 10**6, (8, 8, 8), None, None, 8, 10**9, None, None, {"cpu": device})
    labels = LabelSet({"core": 1, "rim": 2}, frozenset({0, 1, 2}), None, ".nii.gz")
    warnings = ["the teacher had seen 4 of the 4 cases"]
    pictures = Pictures(labels, SimpleITKIO(), image_of, "<b>ours</b>")
    given = ReportInput(result, methods, pictures, "0", warnings, {"student": profile})
    write_report(given, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_the_report_is_one_file_without_network(page):
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_the_report_tells_what_a_reader_needs(page):
    for needed in (
        "4 cases", "<dt>Fold</dt><dd>0</dd>", "the teacher had seen 4 of the 4 cases", "c0ffee" * 8, "123,456",
        "Worst: case_", "Best: case_", "dcd loss by epoch", "Dice against number of parameters",
        "Dice against latency (s), one patch, cpu", "Model complexity", "Wilcoxon p",
    ):  # fmt: skip
        assert needed in page, needed


def test_names_cannot_inject_markup(page):
    assert "<b>ours</b>" not in page
    assert "&lt;b&gt;ours&lt;/b&gt;" in page
