"""Where the proof's trainings come from: code, packages and machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import proof
import proof_keep
import proof_origin
import pytest
import sweep_trainings

from nnunet_kd.system.cores import usable_cores


def test_a_training_keeps_the_origin_that_it_had(sweep: Path, origin: dict[str, str]) -> None:
    proof_keep.name_origins("hippocampus")  # nothing is known yet
    proof_origin.write_origin(sweep, origin)
    proof_keep.name_origins("hippocampus")
    proof_origin.write_origin(sweep, {**origin, "processor": "another"})
    proof_keep.name_origins("hippocampus")
    folders = [one.folder for one in proof_keep.finished_trainings("hippocampus")]
    assert [proof_origin.read_origin(folder) for folder in folders] == [origin, origin]


def test_trainings_of_other_code_are_refused(sweep: Path, tmp_path: Path, origin: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match="nothing says which code"):
        proof_origin.origins_on_disk([sweep])
    proof_origin.write_origin(sweep, {**origin, "processor": "another", "commit": "another"})
    proof_origin.check_origin(origin, proof_origin.origins_on_disk([sweep, tmp_path / "none"]))
    kept = tmp_path / "kept" / "proof-acdc" / "runs.csv"
    kept.parent.mkdir(parents=True)
    sweep_trainings.add_rows(kept, ("variant", "seed", *origin), [("plain", "0", *{**origin, "torch": "1.0"}.values())])
    with pytest.raises(SystemExit, match=r"runs\.csv has trainings of another origin \(torch: 1\.0 there"):
        proof_origin.check_origin(origin, proof_origin.origins_kept(tmp_path / "kept"))


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


def test_a_training_that_goes_on_elsewhere_names_both_machines(sweep: Path, origin: dict[str, str]) -> None:
    proof_origin.write_origin(sweep, origin)
    proof_keep.name_origins("hippocampus")
    for _ in range(2):
        proof_origin.continue_origins(sweep, {**origin, "processor": "another"})
    told = [proof_origin.read_origin(folder) for folder in proof_origin.begun_trainings(sweep)]
    # the second has no validation yet, the others are finished
    assert [one["processor"] for one in told if one is not None] == [
        "this processor",
        "this processor; another",
        "this processor",
    ]
