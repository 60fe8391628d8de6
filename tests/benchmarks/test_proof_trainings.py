"""The proof's rows against what the protocol names; what is trained, what of it is missing, and where it comes from."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import hippocampus
import long_commands
import proof
import proof_keep
import proof_origin
import pytest
from filelock import FileLock
from proof_values import CORE, CURVES, INHERITED, KEPT, LONG, LONGER, OBJECTIVES, PLAIN, longer_iterations

from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.errors import DataError
from nnunet_kd.nnunet.checkpoints import FINAL
from nnunet_kd.system.cores import usable_cores
from nnunet_kd.workflows.sweep.description import SweepDescription, Variant
from nnunet_kd.workflows.sweep.record import RunRecord

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
    from proof_values import BEST

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


def test_rows_are_the_same_on_both_datasets() -> None:
    one, other = (proof.described(name) for name in BUDGET)
    assert one is not None
    assert other is not None
    assert one.rows().keys() == other.rows().keys()
    for name, variant in one.rows().items():
        if name != LONGER:
            assert other.rows()[name].model_dump() == variant.model_dump()


def test_soft_labels_are_made_where_a_row_reads_them() -> None:
    def row(method: str, **objectives: dict) -> Variant:
        return Variant(method=method, settings={"objectives": objectives})

    maps = {"maps": "teacher_fold_0_mirrored"}
    assert proof.soft_label_choices([row("student"), row("dcd", dcd={})]) == set()
    assert proof.soft_label_choices([row("soft", soft=maps), row("student")]) == {True}
    assert proof.soft_label_choices([row("kd", soft={"maps": "teacher_fold_0_not_mirrored"}, dcd={})]) == {False}
    with pytest.raises(SystemExit, match="name the soft labels"):
        proof.soft_label_choices([row("soft")])


def test_what_is_kept_is_not_trained_again() -> None:
    rows = {name: {"method": "student"} for name in ("a", "b", "c", "d")}
    described = SweepDescription(dataset="1", configuration="2d", name="x", variants=rows, seeds=[0, 1, 2])
    assert proof.missing(described, {}) == [(["a", "b", "c", "d"], [0, 1, 2])]
    kept = {"a": {0, 1, 2}, "c": {1}, "teacher": set()}
    assert proof.missing(described, kept) == [(["b"], [0, 1, 2]), (["c"], [0, 2]), (["d"], [0, 1, 2])]
    assert proof.missing(described, {row: {0, 1, 2} for row in rows}) == []


ORIGIN = {name: f"this {name}" for name in proof_origin.COLUMNS}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder with three trainings: finished, without validation, and in somebody's hands."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    folder = proof_keep.sweep_folder("hippocampus")
    for seed in range(3):
        fold = folder / "plain" / f"seed_{seed}" / "Dataset004_Hippocampus" / "T__nnUNetPlans__3d_fullres" / "fold_0"
        (fold / "validation").mkdir(parents=True)
        (fold / FINAL).touch()
        if seed != 1:
            (fold / "validation" / "summary.json").touch()
    return folder


def test_only_whole_trainings_are_kept(sweep: Path) -> None:
    with FileLock(sweep / "plain" / "seed_2" / ".fold_0.lock"):
        assert [(one.row, one.seed) for one in proof_keep.finished_trainings("hippocampus")] == [("plain", 0)]
    assert [one.seed for one in proof_keep.finished_trainings("hippocampus")] == [0, 2]


def test_a_training_keeps_the_origin_that_it_had(sweep: Path) -> None:
    proof_keep.name_origins("hippocampus")  # nothing is known yet
    proof_origin.write_origin(sweep, ORIGIN)
    proof_keep.name_origins("hippocampus")
    proof_origin.write_origin(sweep, {**ORIGIN, "processor": "another"})
    proof_keep.name_origins("hippocampus")
    folders = [one.folder for one in proof_keep.finished_trainings("hippocampus")]
    assert [proof_origin.read_origin(folder) for folder in folders] == [ORIGIN, ORIGIN]


def test_trainings_of_other_code_are_refused(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing says which code"):
        proof_origin.origins_on_disk([sweep])
    proof_origin.write_origin(sweep, {**ORIGIN, "processor": "another", "commit": "another"})
    proof_origin.check_origin(ORIGIN, proof_origin.origins_on_disk([sweep, tmp_path / "none"]))
    kept = tmp_path / "kept" / "proof-acdc" / "runs.csv"
    kept.parent.mkdir(parents=True)
    hippocampus.add_rows(kept, ("variant", "seed", *ORIGIN), [("plain", "0", *{**ORIGIN, "torch": "1.0"}.values())])
    with pytest.raises(SystemExit, match=r"runs\.csv has trainings of another origin \(torch: 1\.0 there"):
        proof_origin.check_origin(ORIGIN, proof_origin.origins_kept(tmp_path / "kept"))


def test_code_that_is_not_committed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"status": "", "rev-parse": "a" * 40}
    monkeypatch.setattr(proof_origin, "git", lambda command, *rest: told[command])
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    before = proof_origin.present_origin(jobs=2, device="cpu")
    assert tuple(before) == proof_origin.COLUMNS
    told["rev-parse"] = "b" * 40
    with pytest.raises(SystemExit, match="another origin"):
        proof_origin.check_origin(proof_origin.present_origin(2, "cpu"), [("there", before)])
    told["status"] = " M nnunet_kd/cli/main.py"
    with pytest.raises(SystemExit, match="not committed"):
        proof_origin.present_origin(jobs=2, device="cpu")


def test_all_code_that_trains_is_compared() -> None:
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=proof.HERE, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip("not a git repository")
    trees = proof_origin.git("rev-parse", *(f"HEAD:{name}" for name in proof_origin.CODE)).split()
    assert len(set(trees)) == len(proof_origin.CODE) == 3


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({}, None),
        ({"nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": str(usable_cores())}, None),
        ({"nnUNet_n_proc_DA": "2"}, "no loader processes"),
        ({"OMP_NUM_THREADS": str(usable_cores() + 1)}, "Unset it"),
        ({"OMP_NUM_THREADS": "4,2"}, "Unset it"),
        ({"NNUNET_KD_CONFIG": "short"}, "NNUNET_KD_CONFIG is set"),
    ],
)
def test_the_callers_environment_is_checked(
    variables: dict[str, str], refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "nnUNet_n_proc_DA",
        "OMP_NUM_THREADS",
        "nnUNet_def_n_proc",
        "NNUNET_KD_CONFIG",
        "NNUNET_KD_SET",
        "PATH",
    ):
        monkeypatch.setenv(name, "")  # so that what is changed is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refused is not None:
        with pytest.raises(SystemExit, match=refused):
            proof_origin.prepare_environment(jobs=1)
        return
    proof_origin.prepare_environment(jobs=1)
    assert proof_origin.os.environ["nnUNet_n_proc_DA"] == "0"
    assert proof_origin.os.environ["PATH"] == f"{Path(sys.executable).parent}:/somewhere"
    assert "PYTHONDONTWRITEBYTECODE" not in proof_origin.os.environ


def test_no_machines_path_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in proof_keep.ROOTS:
        monkeypatch.setenv(name, f"/data/{name[7:]}")
    assert proof_keep.without_paths("-t /data/results/x maps=/data/preprocessed/y") == (
        "-t $nnUNet_results/x maps=$nnUNet_preprocessed/y"
    )


def test_rows_are_added_and_replaced_under_the_same_columns(tmp_path: Path) -> None:
    path, columns = tmp_path / "runs.csv", ("variant", "seed", "commit")
    hippocampus.add_rows(path, columns, [("plain", "0", "a"), ("plain", "1", "a")])
    hippocampus.add_rows(path, columns, [("plain", "1", "b"), ("inherited", "0", "b")])
    with path.open(newline="") as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [
            ("plain", "0", "a"),
            ("plain", "1", "b"),
            ("inherited", "0", "b"),
        ]
    with pytest.raises(SystemExit, match="other columns"):
        hippocampus.add_rows(path, ("variant", "seed", "code"), [])


def test_kept_files_have_the_columns_that_are_written() -> None:
    for path in KEPT.glob("proof-*/runs.csv"):
        assert tuple(next(csv.reader(path.open()))) == proof_keep.RUN_COLUMNS


def test_a_row_whose_trainings_have_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in proof_keep.ROOTS:
        monkeypatch.setenv(name, f"/data/{name[7:]}")

    def keep(**settings: object) -> None:
        proof_keep.keep_settings("inherited", {"nnunet_kd": {"settings": {"reduction": 4.0, **settings}}}, tmp_path)

    keep(seed=0, start="/data/results/x")
    keep(seed=1, start="/data/results/x")
    assert "$nnUNet_results/x" in (tmp_path / "settings" / "inherited.yaml").read_text()
    with pytest.raises(DataError, match="its settings are not those of"):
        keep(seed=2, start="/data/results/y")


def test_what_is_kept_of_a_training(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = next(proof_keep.finished_trainings("hippocampus"))
    told = {
        "variant": "plain",
        "method": "student",
        "fold": 0,
        "seed": 0,
        "device": "cpu",
        "starts": 2,
        "command_seconds": 9.0,
    }
    command = ["nnunet-kd", "train", "--set", f"start={sweep.parent}/x"]
    RunRecord.model_validate({**told, "command": command, "software": {}}).write(one.folder)
    (one.folder / "training_log_1.txt").write_text("Epoch time: 3.0 s\nEpoch time: 5.0 s\n")
    for name in proof_keep.ROOTS[1:]:
        monkeypatch.setenv(name, f"/data/{name}")
    soft = {"maps": "/data/maps/teacher_mirrored_12ab"}
    settings = {"teacher": [{"sha256": "aa"}, {"sha256": "bb"}], "objectives": {"soft": soft}}
    entry = {"settings": settings, "clipped_steps": [0.25, 0.75], "history": [{"segmentation": 0.123456, "soft": 1.0}]}
    logged = {"train_losses": [0.5, 0.25], "mean_fg_dice": [0.1, 0.2]}
    checkpoint = {"nnunet_kd": entry, "logging": logged}
    row = dict(zip(proof_keep.RUN_COLUMNS, proof_keep.run_row(one, checkpoint, ORIGIN), strict=True))
    assert (row["teacher_sha256"], row["soft_labels"], row["starts"]) == ("aa bb", "teacher_mirrored_12ab", "2")
    assert (row["training_seconds"], row["median_epoch_seconds"], row["clipped_share"]) == ("8", "4", "0.5000")
    assert row["command"].endswith("start=$nnUNet_results/Dataset004_Hippocampus/sweeps/x")
    first, second = (
        dict(zip(proof_keep.EPOCH_COLUMNS, each, strict=True)) for each in proof_keep.epoch_rows(one, checkpoint)
    )
    assert json.loads(first["losses"]) == {"segmentation": 0.12346, "soft": 1.0}
    assert (first["clipped_share"], second["pseudo_dice"], second["losses"]) == ("0.2500", "0.200000", "{}")


def test_one_bad_training_does_not_stop_the_others(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def keep_training(name: str, one: proof_keep.Training, target: Path) -> None:
        if one.seed == 0:
            raise KeyError("history")
        kept.append(one.seed)

    monkeypatch.setattr(proof_keep, "keep_training", keep_training)
    (problem,) = proof_keep.keep("hippocampus", tmp_path / "kept")
    assert problem.startswith("hippocampus, plain, seed 0:")
    assert kept == [2]


STOPS = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(0.3), print("stopped", file=open(sys.argv[1], "a")), sys.exit(1)))
open(sys.argv[1], "a").close()
time.sleep(30)
"""


def test_ctrl_c_lets_the_command_stop_in_its_own_time(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def interrupt() -> None:
        for _ in range(1000):
            if told.is_file():
                break
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        long_commands.code_of(sys.executable, "-c", STOPS, told)
    thread.join()
    assert ended.value.code == long_commands.INTERRUPTED
    assert told.read_text() == "stopped\n"


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = f"import os, signal; os.kill({os.getpid()}, signal.SIGHUP); exit(5)"
        assert long_commands.code_of(sys.executable, "-c", hang_up) == 5
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failure_meanwhile_leaves_nothing_behind(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def fail() -> None:
        if told.is_file():
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        long_commands.code_of(sys.executable, "-c", STOPS, told, every=0.1, meanwhile=fail)
    assert told.read_text() == "stopped\n"


def test_something_is_done_while_a_command_runs() -> None:
    looks: list[int] = []
    code = long_commands.code_of(
        sys.executable, "-c", "import time; time.sleep(0.7); exit(3)", every=0.1, meanwhile=lambda: looks.append(1)
    )
    assert code == 3
    assert looks
    with pytest.raises(SystemExit) as ended:
        long_commands.run(sys.executable, "-c", "exit(4)")
    assert ended.value.code == 4
